"""What a run that goes on says of itself: how good it was, what its schedule does now, and that nothing is left."""

from accel_train.cli import main

TINY = [f"--task.init_args.{name}" for name in
        ("d_model=16", "dim_feedforward=16", "nhead=2", "num_layers=1", "eval_rows=16", "max_len=80")]  # fmt: skip


def train(folder, capsys, *options) -> str:
    command = ["train", "--task=collatz", *TINY, "--global_batch_size=8", "--eval_steps=3", "--report_to=[]",
               "--lr_scheduler_type=cosine", f"--output_dir={folder}", *options]  # fmt: skip
    assert main(command) == 0
    return capsys.readouterr().out


def test_a_run_that_goes_on_says_how_it_stands(tmp_path, capsys):
    run = tmp_path / "run"
    assert "before:" not in train(run, capsys, "--max_steps=6")
    done = train(run, capsys, "--max_steps=6")
    assert "resumed at step 6" in done and "before: 2 evaluations, best loss" in done
    assert "this run is complete" in done and f"--init_from={run} and another output_dir" in done
    assert "learning rate of" not in done
    longer = train(run, capsys, "--max_steps=12")
    assert "cosine over 12 steps, as if meant from the start" in longer
    again = train(run, capsys, "--max_steps=12")
    assert "learning rate of" not in again
