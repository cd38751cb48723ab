"""A folder through Ray Data on a local Ray with two workers, as through the command. Needs the extra "ray"."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mcodec.cli import main as entry

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

Make = Callable[..., NDArray[np.uint8]]
# Ray and its libraries warn of themselves
pytestmark = pytest.mark.filterwarnings("ignore")


#: Seconds for a worker to start and to import torch: on a busy machine it takes minutes.
PATIENCE = 600


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray of this machine alone, as small as it gets."""
    for name in ("raylet_start_wait_time_s", "worker_register_timeout_seconds"):
        monkeypatch.setenv(f"RAY_{name}", str(PATIENCE))
    try:
        ray.init(
            num_cpus=3,  # two workers, and one to read files for them
            object_store_memory=2**27,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
        )
        context = ray.data.DataContext.get_current()
        context.wait_for_min_actors_s = PATIENCE
        context.enable_progress_bars = False
        yield
    finally:
        ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_a_folder_on_two_workers(picture: Make, tmp_path: Path) -> None:
    import mcodec.ray

    source, out, back = tmp_path / "in", tmp_path / "out", tmp_path / "back"
    source.mkdir()
    for index in range(6):
        Image.fromarray(picture(40 + 7 * index, 60, index)).save(source / f"{index}.png")
    assert entry.run(["encode", str(source), str(out), "-q", "60", "--device", "cpu"]) == 0
    assert entry.run(["decode", str(out), str(back), "--device", "cpu"]) == 0

    two: Any = ray.data.ActorPoolStrategy(size=2)
    options = {"batch_size": 3, "compute": two, "zero_copy_batch": False}
    pictures = ray.data.read_binary_files(str(source), include_paths=True)
    coded = pictures.map_batches(mcodec.ray.Encode, fn_constructor_kwargs={"quality": 60, "device": "cpu"}, **options)
    coded = coded.materialize()  # the workers go, and there is room for those that decode
    decoded = coded.map_batches(mcodec.ray.Decode, fn_constructor_kwargs={"column": "mci", "device": "cpu"}, **options)
    rows = {Path(row["path"]).stem: row for row in decoded.take_all()}
    assert sorted(rows) == [str(index) for index in range(6)]
    for name, row in rows.items():
        assert row["error"] is None and bytes(row["mci"]) == (out / f"{name}.mci").read_bytes()
        with Image.open(back / f"{name}.png") as image:
            # batches differ, and with them the order in which floats are added up
            assert np.abs(np.asarray(row["image"]).astype(int) - np.asarray(image)).max() <= 1
