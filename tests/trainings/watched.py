"""Callbacks, a metric of scikit-learn that decides, early stopping: bars again, watched."""

from bars import BarsTask
from sklearn.metrics import roc_auc_score

from accel_train import Observer, Trainer
from accel_train.task import Gathers


class ScoredTask(BarsTask, Gathers):
    """The AUC decides which model is the best, and when there is nothing more to learn."""

    recommended = {"metric_for_best_model": "auc", "greater_is_better": True, "eval_steps": "1ep",
                   "early_stopping_patience": 2, "early_stopping_threshold": 0.005}  # fmt: skip

    def eval_gather(self, models, batch):
        scores = models["model"](batch["image"])
        return {"score": scores[:, 1] - scores[:, 0], "lies": batch["lies"]}

    def eval_gathered(self, arrays):
        return {"auc": roc_auc_score(arrays["lies"], arrays["score"])}


class Filters(Observer):
    """Shows the filters of the first layer as a picture, and how large they are."""

    def on_start(self, run):
        self.run = run

    def on_evaluate(self, record):
        weights = self.run.models["model"][0].weight.detach()
        self.run.add("filters/norm", weights.norm(), record["step"])
        self.run.add("filters/image", weights.sigmoid().flatten(0, 2), record["step"])


if __name__ == "__main__":
    Trainer(ScoredTask(), output_dir="runs/watched", num_train_epochs=100, observers=[Filters()]).fit()
