"""The report on a trained model."""


def test_curves_are_removed_first_from_too_large_report(ultralytics):
    from trainer.training.yolo.report import LARGEST, bounded

    report = bounded({"mAP": 0.5, "curves": {"f1": [0.123456] * LARGEST}, "confusion_matrix": [[1]]})

    assert report["curves"] is None
    assert report["confusion_matrix"] == [[1]]
    assert report["mAP"] == 0.5
    assert "`curves` was removed" in report["notes"][0]


def test_small_report_is_unchanged(ultralytics):
    from trainer.training.yolo.report import bounded

    assert bounded({"mAP": 0.5}) == {"mAP": 0.5}


def test_report_without_final_validation_uses_best_epoch_or_last_epoch(ultralytics, tmp_path):
    from trainer.core.dataset import Task
    from trainer.training.yolo.report import from_results

    csv = tmp_path / "results.csv"
    csv.write_text(
        "epoch,time,train/box_loss,metrics/mAP50-95(B),val/box_loss\n1,1.0,3,0.25,nan\n2,2.0,2,0.5,1\n3,3,1,0.4,1\n"
    )

    assert from_results(csv, 2, Task.DETECT)["mAP"] == 0.5
    last = from_results(csv, None, Task.DETECT)
    assert last["mAP"] == 0.4
    assert last["metrics"] == {"metrics/mAP50-95(B)": 0.4, "val/box_loss": 1.0}
    assert "val/box_loss" not in from_results(csv, 1, Task.DETECT)["metrics"]
