"""Runs on machines that are lost with their disks, whose folder has a mirror."""

import shutil

import pytest
from processes import Run, fit
from progress import fence
from test_resume import assert_bit_equal, kill_at, losses, manifest, run_file, whole  # noqa: F401
from waiting import until

from counterpoint.launch.run.faults import mirror

pytestmark = pytest.mark.soak


def has_arrived(run_dir, store) -> bool:
    """Whether the first checkpoint is there; unlike a store's, its files grow."""
    sizes = [
        {str(f.relative_to(folder)): f.stat().st_size for f in folder.rglob("*") if f.is_file()}
        for folder in (run_dir / "checkpoints", store / "checkpoints")
    ]
    first = [{name: size for name, size in s.items() if "06.ckpt" in name} for s in sizes]
    return bool(first[0]) and first[0] == first[1]


@pytest.mark.parametrize("form", ["single", "distributed"])
def test_a_machine_is_lost_with_its_disk(tmp_path, manifest, whole, form):  # noqa: F811
    """Both ranks are killed, the folder is gone, and the lease is that of a dead process."""
    folder, store = tmp_path / "run", tmp_path / "store"
    save = {"every_n_steps": 6, "keep": 2, "format": form}
    options = [f"--mirror=file://{store}"]
    arguments = [*run_file(folder, manifest, "32-true", checkpoint=save), *options]
    fence(folder / "at", 16)  # until the next look at the folder
    run = Run(["fit", *arguments], 2, folder / "log")
    until(lambda: has_arrived(folder / "run", store), run.alive, run.text)
    kill_at(run, folder, 14)
    fence(folder / "at", None)
    shutil.rmtree(folder / "run")
    (folder / "keys.txt").unlink()
    text = fit([*arguments, "--resume", "auto"], 2, folder / "again.log")
    assert "fetching step-000000" in text
    assert_bit_equal(whole / "run", folder / "run")
    assert losses(whole / "run") == losses(folder / "run")
    files = [path for path in (store / "checkpoints").rglob("*") if path.is_file()]
    names = {path.relative_to(store).parts[1] for path in files}
    assert names == {path.name for path in (folder / "run" / "checkpoints").iterdir()}
    assert not (store / mirror.LEASE).exists()
