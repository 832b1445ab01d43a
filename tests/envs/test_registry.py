"""Names, their nearest neighbours, and what importing costs."""

import subprocess
import sys

import pytest

from jaxlab.envs import make, names


def test_every_light_name_makes_its_environment():
    for name in ("pendulum", "cartpole_swingup"):
        assert name in names() and make(name).spec.name == name
    assert {"brax/inverted_pendulum", "brax/hopper", "brax/ant"} <= set(names())


@pytest.mark.parametrize(
    "wrong, right",
    [
        ("pendullum", "pendulum"),
        ("cartpole", "cartpole_swingup"),
        ("inverted_pendulum", "brax/inverted_pendulum"),
        ("brax/hoper", "brax/hopper"),
    ],
)
def test_unknown_name_suggests_the_nearest(wrong, right):
    with pytest.raises(ValueError, match=f"{wrong}.*{right}"):
        make(wrong)


def test_hopeless_name_lists_the_known_ones():
    known = "known: pendulum, cartpole_swingup, point_mass, brax/ant"
    with pytest.raises(ValueError, match=known):
        make("xyzzy")


@pytest.mark.parametrize("name", ["pendulum", "cartpole_swingup", "brax/hopper"])
def test_episode_length_must_be_a_positive_int(name):
    for bad in (0, -3, 2.5):
        with pytest.raises(ValueError, match="episode_length"):
            make(name, episode_length=bad)


@pytest.mark.parametrize("name", ["pendulum", "cartpole_swingup"])
def test_other_episode_length_has_no_reference_returns(name):
    spec = make(name, episode_length=17).spec
    assert spec.episode_length == 17
    assert spec.random_return is None and spec.expert_return is None


def test_importing_envs_leaves_brax_alone():
    code = "import sys, jaxlab.envs; sys.exit('brax' in sys.modules or 'mujoco' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
