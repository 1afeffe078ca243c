"""Experiments over a local Ray cluster of two workers give what they give one after the other."""

from __future__ import annotations

import pytest

import fake_paper
from fake_paper import SOURCE, FakeWorld
from showtell.errors import ShowtellError
from showtell.reproduce.cluster import spread
from showtell.reproduce.many import attempt
from showtell.reproduce.runner import Settings

ray = pytest.importorskip("ray")

ALONE = SOURCE.replace('    prompts = lab.prompts("pairs")\n', "").replace("prompts.binding", "brightness") + (
    "\n\ndef brightness(images):\n    return np.array([np.asarray(image).mean() / 255 for image in images])\n"
)


@pytest.mark.slow
def test_a_cluster_of_two_gives_the_same_results(tmp_path, monkeypatch):
    fake = FakeWorld(tmp_path, monkeypatch)
    papers = [fake.paper(ALONE.replace("0.7", value), f"fake{value[2:]}") for value in ("0.2", "0.5", "0.7")]
    papers.append(fake.paper("def experiment(lab):\n    return 1 / 0\n", "broken"))
    settings = Settings(prompts=8, seeds=2)
    alone = {paper.slug: attempt(paper, settings) for paper in papers}
    monkeypatch.setenv("SHOWTELL_CACHE", str(tmp_path / "other"))
    ray.cloudpickle.register_pickle_by_value(fake_paper)  # workers do not have the tests on their path
    fake.ran  # noqa: B018
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"FAKE_LOG": str(fake.log)}}
    )
    try:
        found = {result.row["slug"]: result for result in spread(papers, settings, "auto")}
    finally:
        ray.shutdown()
    assert len(fake.ran) == 18
    varying = ("seconds", "time", "pictures")
    assert set(found) == set(alone)
    for slug, result in found.items():
        for name, value in result.row.items():
            assert name in varying or value == alone[slug].row[name], (slug, name)
        assert list(result.pictures.values()) == list(alone[slug].pictures.values())
    assert found["broken"].row["verdict"] == "failed" and "ZeroDivisionError" in found["broken"].note


@pytest.mark.slow
def test_no_cluster_at_an_address_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "")
    with pytest.raises(ShowtellError, match="ray start --head") as error:
        list(spread([FakeWorld(tmp_path, monkeypatch).paper()], Settings(4, 1), "auto"))
    assert "\n" not in str(error.value)
