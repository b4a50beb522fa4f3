"""What stages share: origins that stay the same for the same work."""

from heatproof.config import Plugin, TrainCls
from heatproof.stages.run import fill_origin, training_origin

MODEL = {"arch": "heatproof.models.resnet_cifar.ResNet8"}


def training(**changes):
    return TrainCls.model_validate({"model": MODEL, **changes})


def test_options_that_came_later_do_not_change_the_origin_of_trainings_without_them():
    assert training_origin(training()) == {
        "optimizer": {"name": "torch.optim.Adam", "lr": 1.0e-3, "weight_decay": 1.0e-4},
        "scheduler": {"name": "torch.optim.lr_scheduler.StepLR", "step_size": 10, "gamma": 0.5},
        "loss": {"name": "torch.nn.CrossEntropyLoss"},
        "batch_size": 256,
        "nb_epochs": 50,
        "augmentation": {"crop_padding": 4, "padding": "fill", "flip": True},
        "precision": "float32",
        "channels_last": False,
    }


def test_an_option_that_is_used_is_in_the_origin():
    plain = training_origin(training())
    for option in ({"patience": 3}, {"scheduler_per_batch": True}):
        assert training_origin(training(**option)) == plain | option
    for option in ({"noise": 1.0}, {"rotation": 20.0}, {"blur": True}):
        augmentation = plain["augmentation"] | option
        assert training_origin(training(augmentation=option)) == plain | {"augmentation": augmentation}


def test_a_fill_counts_by_its_options_and_the_content_of_its_files(tmp_path):
    first, second = tmp_path / "a.pth", tmp_path / "b.pth"
    first.write_bytes(b"weights")
    second.write_bytes(b"weights")
    asked = [Plugin.model_validate({"name": "CaGan", "weights": str(path)}) for path in (first, second)]
    assert fill_origin(asked[0]) == fill_origin(asked[1])
    second.write_bytes(b"others")
    assert fill_origin(asked[0]) != fill_origin(asked[1])
    assert fill_origin(asked[0])["name"] == "CaGan"
    assert fill_origin("mean") == "mean"
