"""Optimisers by name, groups of parameters."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accel_train.errors import UserError, suggest
from accel_train.train.optim import build_optimizer, optimizer_class, parameter_groups, renew_groups, renew_options


def named():
    return {str(i): p for i, p in enumerate(parameters())}


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(3, 3))]


@pytest.mark.parametrize("name", ["AdamW", "adamw", "torch.optim.AdamW", "torch.optim.adamw.AdamW"])
def test_names_of_an_optimiser(name):
    assert optimizer_class(name) is torch.optim.AdamW


def test_every_optimiser_of_torch_can_be_named():
    names = [n for n, c in vars(torch.optim).items() if isinstance(c, type) and n not in ("Optimizer", "lr_scheduler")]
    assert {"SGD", "Adam", "RMSprop", "LBFGS"} <= set(names)
    for name in set(names) - {"LBFGS", "SparseAdam"}:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert build_optimizer(named(), name, 0.1, {}).optimizer.param_groups[0]["lr"] == 0.1


def test_lists_become_tuples():
    optimizer = build_optimizer(named(), "AdamW", 1e-3, {"betas": [0.5, 0.9], "weight_decay": 0.0}).optimizer
    assert optimizer.defaults["betas"] == (0.5, 0.9)


class OnlyAtFirst(torch.optim.Optimizer):
    """As some optimisers do, it tells only at its first step that it needs a closure."""

    def __init__(self, params, lr, **options):
        super().__init__(params, {"lr": lr, **options})

    def step(self, closure=None):
        assert closure is not None or self.defaults.get("easy"), "needs a closure"


def test_options_that_a_signature_does_not_name():
    assert build_optimizer(named(), f"{__name__}.OnlyAtFirst", 0.1, {"easy": 1}).optimizer.defaults["easy"] == 1


def test_parameters_of_every_kind():
    kinds = [torch.ones(3), torch.ones(2, 2, dtype=torch.complex64), torch.ones(0, 3), torch.tensor(1.0).double()]
    params = [torch.nn.Parameter(t) for t in [*kinds, torch.ones(2, dtype=torch.bfloat16)]]
    for name in ("AdamW", "SGD", "RMSprop"):
        assert len(build_optimizer(dict(enumerate(params)), name, 0.1, {}).optimizer.param_groups[0]["params"]) == 5
    assert [p.grad for p in params] == [None] * 5


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("Adamm", {}, r"optimizer.class_path: unknown 'Adamm' \(did you mean Adam\?\)"),
        ("no.such", {}, "optimizer.class_path: cannot import 'no.such'"),
        ("torch.optim.Adamm", {}, "optimizer.class_path: cannot import 'torch.optim.Adamm'"),
        ("Optimizer", {}, "optimizer.class_path: unknown 'Optimizer'; give a name in torch.optim, or module.Class"),
        ("AdamW", {"fused": "maybe"}, "optimizer.init_args.fused: expected true or false, got 'maybe'"),
        ("AdamW", {"beta": 1}, r"optimizer.init_args: AdamW has no option 'beta' \(did you mean betas\?\)"),
        ("AdamW", {"lr": 1}, "optimizer.init_args.lr: give the rate as learning_rate"),
        ("AdamW", {"betas": [2.0, 0.9]}, "optimizer: AdamW refuses its arguments: Invalid beta"),
        ("AdamW", {"weight_decay": "much"}, "optimizer: AdamW refuses its arguments"),
        ("AdamW", {"betas": [0.9]}, r"optimizer: AdamW refuses its arguments: IndexError.*betas=\(0.9,\)"),
        ("AdamW", {"params": []}, "optimizer.init_args.params"),
        ("SGD", {"momentum": [0.9]}, "optimizer: SGD refuses its arguments"),
        ("RMSprop", {"alpha": "0.9"}, "optimizer: RMSprop refuses its arguments"),
        ("NAdam", {"capturable": True}, "optimizer: NAdam refuses its arguments"),
        ("LBFGS", {}, "optimizer: LBFGS evaluates the loss several times in a step"),
        (
            "SparseAdam",
            {},
            "optimizer: SparseAdam refuses its arguments: RuntimeError: SparseAdam does not support dense",
        ),
        ("torch.nn.Linear", {}, "torch.nn.Linear is no optimizer class"),
        ("torch.optim.lr_scheduler", {}, "torch.optim.lr_scheduler is no optimizer class"),
        (
            f"{__name__}.OnlyAtFirst",
            {},
            "optimizer: OnlyAtFirst refuses its arguments: AssertionError: needs a closure",
        ),
    ],
)
def test_optimisers_that_cannot_be(name, arguments, says):
    with pytest.raises(UserError, match=says):
        build_optimizer(named(), name, 0.1, arguments)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it from 2.9 on")
def test_an_optimiser_speaks_of_the_model_s_own_parameters():
    with pytest.raises(UserError, match=r"Muon only supports 2D .*Size\(\[7\]\)"):
        build_optimizer({"w": torch.nn.Parameter(torch.ones(7))}, "Muon", 0.1, {})


def test_suggestions():
    assert suggest("cosin", ["cosine", "linear"]) == " (did you mean cosine?)" and suggest("zzz", ["cosine"]) == ""


def test_parameters_that_do_not_decay_or_learn_slowly():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    named = dict(model.named_parameters())
    said = {name: {"betas": (0.5, 0.9), "lr_factor": 7.0} if name == "1.weight" else {} for name in named}
    groups = parameter_groups(said, ["*.bias", "1.*"], {"1.w*": 0.5, "*.weight": 0.1})
    built = build_optimizer(named, "AdamW", 0.1, {"weight_decay": 0.5}, groups)
    optimizer = built.optimizer
    found = {name: g for g in optimizer.param_groups for p in g["params"] for name, q in named.items() if p is q}
    assert [found[name]["weight_decay"] for name in named] == [0.5, 0.0, 0.0, 0.0]
    assert [found[name]["lr_factor"] for name in named] == [0.1, 1.0, 0.5, 1.0], "a config comes before the task"
    assert found["1.weight"]["betas"] == (0.5, 0.9) != found["0.weight"]["betas"]
    before = {name: p.detach().clone() for name, p in named.items()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in named.items():
        assert torch.equal(p, before[name]) == (name != "0.weight"), name
    renew_options(built, {"weight_decay", "betas"}, groups)
    assert [found[name]["weight_decay"] for name in named] == [0.5, 0.0, 0.0, 0.0]
    assert found["1.weight"]["betas"] == (0.5, 0.9)


@given(st.lists(st.sampled_from([{}, {"weight_decay": 0.0}, {"lr_factor": 0.5}, {"lr_factor": 1.0}]), min_size=1))
def test_every_parameter_is_in_one_group(said):
    groups = parameter_groups({str(i): each for i, each in enumerate(said)})
    if not groups:
        assert all(each in ({}, {"lr_factor": 1.0}) for each in said)
        return
    assert sorted(int(name) for group in groups for name in group.names) == list(range(len(said)))
    for group in groups:
        for name in group.names:
            assert said[int(name)] in (dict(group.options), {**group.options, "lr_factor": group.lr_factor})


def test_groups_that_are_restored():
    def built(options, patterns=()):
        groups = parameter_groups(options, patterns, {"0": 0.5} if patterns else {})
        parameters = {str(i): torch.nn.Parameter(torch.ones(2)) for i in range(2)}
        return build_optimizer(parameters, "SGD", 0.1, {}, groups).optimizer, groups

    saved, _ = built({"0": {"lr_factor": 0.1}, "1": {}})
    now, groups = built({"0": {"lr_factor": 0.3}, "1": {}})
    now.load_state_dict(saved.state_dict())
    renew_groups(now, groups)
    assert [group["lr_factor"] for group in now.param_groups] == [1.0, 0.3]
    other, groups = built({"0": {}, "1": {"lr_factor": 0.1}})
    other.load_state_dict(saved.state_dict())
    with pytest.raises(UserError, match="has the parameters in other groups"):
        renew_groups(other, groups)


@pytest.mark.parametrize(
    ("name", "said", "patterns", "factors", "says"),
    [
        ("AdamW", {}, ["*.bais"], {}, r"optimizer.no_weight_decay: '\*.bais' matches none of 0"),
        ("AdamW", {}, [], {"x": 0.1}, r"optimizer.lr_factors: 'x' matches none of 0"),
        ("AdamW", {}, [], {"0": -1.0}, "the lr_factor of 0 is -1.0; expected a number from 0 on"),
        ("AdamW", {"lr_factor": "low"}, [], {}, "the lr_factor of 0 is 'low'"),
        ("AdamW", {"wd": 0}, [], {}, "0 is to have 'wd', but AdamW has no option 'wd'"),
        ("AdamW", {"betas": (2.0, 0.9)}, [], {}, "AdamW refuses its arguments: Invalid beta.*2.0"),
        ("Rprop", {}, ["*"], {}, "0 is to have 'weight_decay', but Rprop has no option 'weight_decay'"),
    ],
)
def test_groups_that_cannot_be(name, said, patterns, factors, says):
    with pytest.raises(UserError, match=says):
        build_optimizer(named(), name, 0.1, {}, parameter_groups({"0": said}, patterns, factors))
