"""Claims are written down before the run; a run directory belongs to one registration."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlab.report import configs, files
from jaxlab.report.program import Program

if TYPE_CHECKING:
    from jaxlab.stats import Claim

CLAIMS_FILE = "claims.json"
VERDICT_FILE = "verdict.json"


class RegistrationError(ValueError):
    """The directory belongs to another experiment, configuration or set of claims."""


def claim_json(claim: Claim) -> dict[str, Any]:
    """A claim's fields and digest, ready for JSON."""
    return configs.plain(claim) | {"digest": claim.digest()}


def claim_from_json(content: dict[str, Any]) -> Claim:
    """Inverse of `claim_json`.

    Raises:
        ValueError: fields are missing or unknown, or they do not have the digest that stands
            beside them.
    """
    from jaxlab.stats import Claim, Guard

    fields = {name: value for name, value in content.items() if name != "digest"}
    try:
        guards = tuple(Guard(**guard) for guard in fields.pop("guards"))
        protocol = tuple((name, value) for name, value in fields.pop("protocol"))
        claim = Claim(**fields, guards=guards, protocol=protocol)
    except (KeyError, TypeError) as error:
        raise ValueError(f"claim cannot be read: {error}") from error
    if claim.digest() != content.get("digest"):
        raise ValueError(f"claim {claim.name!r} does not have the digest stored beside it")
    return claim


def register(
    directory: Path, program: Program, config: Any, claims: tuple[Claim, ...], *, resume: bool
) -> bool:
    """Writes `claims.json` before anything is evaluated.

    Args:
        directory: the run's folder, made if absent.
        program: the experiment.
        config: its configuration.
        claims: what it claims under that configuration.
        resume: continue what the folder holds; with False an earlier run of the same experiment is
            replaced, and the number of earlier registrations stays on record.

    Returns:
        Whether an earlier registration is being continued.

    Raises:
        RegistrationError: the folder holds another experiment, or, when resuming, another
            configuration or other claims.
    """
    names = [claim.name for claim in claims]
    if len(set(names)) != len(names):
        raise RegistrationError(
            f"experiment {program.name!r}: claims must have distinct names, got {names}"
        )
    path = directory / CLAIMS_FILE
    new = {
        "experiment": program.name,
        "config": configs.plain(config),
        "config_digest": configs.digest(config),
        "claims": [claim_json(claim) for claim in claims],
        "earlier_registrations": 0,
    }
    if path.exists():
        old = files.read_json(path)
        _check_experiment(directory, old["experiment"], program.name)
        if resume:
            _check_same(directory, old, new)
            return True
        new["earlier_registrations"] = old["earlier_registrations"] + 1
        # A verdict of the replaced run must not stand beside the new claims, nor may the new run,
        # once interrupted, go on from checkpoints of the replaced one.
        (directory / VERDICT_FILE).unlink(missing_ok=True)
        for kept in checkpoints(directory):
            shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
    elif directory.is_dir() and any(directory.iterdir()):
        raise RegistrationError(
            f"{directory} is not empty and holds no run of {program.name!r}; give another --out"
        )
    files.write_json(path, new)
    return False


def compiled_folder(directory: Path) -> Path:
    """Where a run keeps its compiled programs, which serve every configuration."""
    return directory / "checkpoints" / "compiled"


def checkpoints(directory: Path) -> list[Path]:
    """What the studies of a run have kept in its folder, compiled programs apart."""
    compiled = compiled_folder(directory)
    return [path for path in compiled.parent.glob("*") if path != compiled]


def registered_digests(directory: Path) -> dict[str, str]:
    """Digests of the claims registered in a run directory, by claim name.

    Experiments hand them to `Evidence.registered`; empty where nothing was registered.
    """
    path = directory / CLAIMS_FILE
    registered = files.read_json(path)["claims"] if path.exists() else []
    return {claim["name"]: claim["digest"] for claim in registered}


def _check_experiment(directory: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise RegistrationError(
            f"{directory} holds a run of experiment {found!r}, not {wanted!r}; give another --out"
        )


def _check_same(directory: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    remedy = "give another --out, or --no-resume to replace it"
    before, after = configs.flatten_tree(old["config"]), configs.flatten_tree(new["config"])
    changed = [
        f"{name} {before.get(name)} -> {after.get(name)}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]
    if changed:
        raise RegistrationError(
            f"{directory} holds a run with another configuration ({', '.join(changed)}); {remedy}"
        )
    registered = {claim["name"]: claim["digest"] for claim in old["claims"]}
    current = {claim["name"]: claim["digest"] for claim in new["claims"]}
    if registered != current:
        names = [
            n for n in dict.fromkeys([*registered, *current]) if registered.get(n) != current.get(n)
        ]
        raise RegistrationError(
            f"{directory} was registered with other claims ({', '.join(names)} changed since), "
            f"so its results cannot decide these; {remedy}"
        )
