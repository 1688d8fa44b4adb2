"""Optimisers: a step is the library's own (or the formula's), and each one learns."""

import pytest
import torch
from timm.optim import AdafactorBigVision, get_optimizer_info, list_optimizers
from torch import nn

from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.optim.timm_optimizers import Timm

STABLE = {"betas": (0.9, 0.98), "eps": 1e-6, "clipping_threshold": 1.0}
LAMB = {"betas": (0.9, 0.98), "eps": 1e-6, "max_grad_norm": None}
RECIPES = {
    "adamw": (AdamW(), 0.01),
    "stable": (Timm("adamwlegacy", STABLE), 0.01),
    "lamb": (Timm("lamb", LAMB), 0.02),
    "lion": (Timm("lion", {"betas": [0.9, 0.99]}, weight_decay=0.01), 0.003),
    "adafactor": (Timm("adafactorbv", {"beta2_cap": 0.95}), 0.01),
    "muon": (Timm("nmuon", fallback=["*.0.weight"]), 0.02),
}
# The update of an element follows from its own past, by their papers.
ELEMENTWISE = "adam adamw adamax nadam radam adabelief adagrad adadelta adan adopt lion laprop"
ELEMENTWISE += " madgrad rmsprop rmsproptf sgd sgdw momentum adamwlegacy nadamw"
# Trust ratios, factored moments, orthogonalised matrices, norms, projections, means of a mask.
WHOLE = "lamb lars larc adafactor adafactorbv muon adamuon novograd adamp sgdp mars clion cadamw"


def usable():
    """Names that are of timm or torch and are not refused."""
    for name in list_optimizers(exclude_filters=["kron*", "adahessian"]):
        info = get_optimizer_info(name)
        if not isinstance(info.opt_class, str):
            yield name, (info.defaults or {}).get("corrected_weight_decay", False)


NAMES = dict(usable())


def by_name(name):
    return Timm(name, {"lr": 0.01} if NAMES[name] else None, weight_decay=0.01)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Embedding(9, 16), nn.Linear(16, 32), nn.GELU())
        self.text = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 4))
        self.logit_scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.text(self.image(x)) * self.logit_scale


def loss_of(model):
    g = torch.Generator().manual_seed(1)
    target = torch.randn(9, 4, generator=g)
    return (model(torch.arange(9)) - target).square().mean()


def set_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]


def train(model, optimizer, rate, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        set_rate(optimizer, rate)
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", RECIPES)
def test_every_optimiser_learns(name):
    recipe, rate = RECIPES[name]
    model = Model()
    first = loss_of(model).item()
    assert train(model, recipe.build(model), rate, 150) < 0.1 * first


@pytest.mark.parametrize("name", NAMES)
def test_any_of_timms_goes_on_as_if_nothing_had_happened(name, tmp_path):
    recipe, rate = by_name(name), 0.003
    whole = Model()
    train(whole, recipe.build(whole), rate, 6)
    first, second = Model(), Model()
    assert not torch.equal(whole.image[1].weight, first.image[1].weight)
    optimizer = recipe.build(first)
    train(first, optimizer, rate, 3)
    torch.save([first.state_dict(), optimizer.state_dict()], tmp_path / "state")
    weights, state = torch.load(tmp_path / "state", weights_only=True)
    second.load_state_dict(weights)
    optimizer = recipe.build(second)
    optimizer.load_state_dict(state)
    train(second, optimizer, rate, 3)
    for p, q in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_without_gradients_stay_as_they_are(name):
    """So that a step can be skipped."""
    model = Model()
    optimizer = by_name(name).build(model, fused=False)
    train(model, optimizer, 0.003, 2)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.zero_grad()
    optimizer.step()
    assert all(torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", [*ELEMENTWISE.split(), *WHOLE.split()])
def test_what_an_update_depends_on_is_found_out(name):
    assert Timm(name).whole_tensors == (name in WHOLE.split())
    assert Timm(name).own_shapes == name.startswith("adafactor")


def test_arguments_can_make_an_update_depend_on_whole_tensors():
    assert Timm("adamwlegacy", STABLE).whole_tensors and not Timm("adamwlegacy").own_shapes


@pytest.mark.parametrize(
    ("opt", "args", "words"),
    [
        ("lino", {}, "optim.opt is 'lino'.*did you mean lion"),
        ("lookahead_adam", {}, "no optimiser of timm.*adam"),
        ("adahessian", {}, "second derivatives"),
        ("kron", {}, "at random"),
        ("lion", {"eps": 1e-6}, "optim.args.eps: 'lion' takes no such argument.*betas"),
        ("lion", {"bta": [0.9]}, "did you mean betas"),
        ("lion", {"weight_decay": 1}, "stands beside args"),
        ("adam", {"lr": 1}, "the phases'"),
        ("adamc", {}, "optim.args.lr"),
        ("adamw", {"betas": [2, 0.9]}, "'adamw' cannot be made: Invalid beta"),
    ],
)
def test_what_cannot_work_is_refused(opt, args, words):
    with pytest.raises(ValueError, match=words):
        Timm(opt, args)
    with pytest.raises(ValueError, match=r"optim.fallback.*'lion'"):
        Timm("lion", fallback=["*"])


def test_what_needs_a_package_says_so():
    if torch.cuda.is_available():
        pytest.skip("bitsandbytes may be there")
    with pytest.raises(ValueError, match="'bnblion' cannot be made: CUDA required"):
        Timm("bnblion").build(Model())


@pytest.mark.parametrize(
    ("opt", "args", "theirs"),
    [
        ("adamw", {"betas": (0.9, 0.95)}, lambda g: torch.optim.AdamW(g, betas=(0.9, 0.95))),
        ("momentum", {"momentum": 0.8}, lambda g: torch.optim.SGD(g, momentum=0.8)),
        ("nadam", {}, torch.optim.NAdam),
    ],
)
def test_torchs_own_are_torchs(opt, args, theirs):
    _, got = one_step(Timm(opt, args, weight_decay=0.1), 0.01)
    model = Model().double()
    optimizer = theirs(decaying(model, 0.1))
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.detach(), rtol=1e-12, atol=0, msg=name)


def test_corrected_decay_falls_with_the_square_of_the_rate():
    """As AdamW's with the decay times rate / largest rate."""
    rate, largest, decay = 0.01, 0.04, 0.3
    args = {"lr": largest, "betas": (0.9, 0.98), "eps": 1e-6}
    _, got = one_step(Timm("adamc", args, weight_decay=decay), rate)
    _, want = one_step(AdamW(weight_decay=decay * rate / largest), rate)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-9, atol=1e-12, msg=name)


def decaying(model, decay):
    """Matrices with decay, the rest without."""
    return [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]


def one_step(recipe, rate, steps=3):
    """(before, gradient, after) of the last of a few steps, in float64, by name."""
    model = Model().double()
    optimizer = recipe.build(model)
    trace = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        set_rate(optimizer, rate)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
        optimizer.step()
        trace.append((before, gradients))
    return trace, {n: p.detach() for n, p in model.named_parameters()}


def decay_of(name, tensor, decay):
    return decay if tensor.ndim >= 2 else 0.0


def test_stable_adamw_is_the_formula():
    """v debiased; the update is divided by max(1, RMS(g / (sqrt(v) + eps)))."""
    b1, b2, eps, decay, rate = 0.9, 0.98, 1e-6, 0.3, 0.05
    trace, after = one_step(Timm("adamwlegacy", STABLE, decay), rate, steps=4)
    for name, got in after.items():
        first = second = torch.zeros_like(got)
        for t, (before, gradients) in enumerate(trace, 1):
            g = gradients[name]
            first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g * g
            denominator = (second / (1 - b2**t)).sqrt() + eps
            rms = (g / denominator).square().mean().sqrt()
            update = first / (1 - b1**t) / denominator / max(1.0, rms.item())
            start = before[name]
        want = start * (1 - rate * decay_of(name, got, decay)) - rate * update
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12, msg=name)


def test_lion_is_the_formula():
    b1, b2, decay, rate = 0.9, 0.99, 0.5, 0.01
    trace, after = one_step(Timm("lion", {"betas": (b1, b2)}, decay), rate)
    for name, got in after.items():
        momentum = torch.zeros_like(got)
        for before, gradients in trace:
            g, start = gradients[name], before[name]
            sign = (b1 * momentum + (1 - b1) * g).sign()
            momentum = b2 * momentum + (1 - b2) * g
        want = start * (1 - rate * decay_of(name, got, decay)) - rate * sign
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12, msg=name)


def test_lamb_is_the_formula_and_does_not_clip():
    """Trust ratio |w| / |update| for what decays; no clipping at norm 1 in front of it."""
    b1, b2, eps, decay, rate = 0.9, 0.98, 1e-6, 0.2, 0.05
    trace, after = one_step(Timm("lamb", LAMB, decay), rate)
    assert sum(g.square().sum() for g in trace[0][1].values()) > 1
    for name, got in after.items():
        first = second = torch.zeros_like(got)
        for t, (before, gradients) in enumerate(trace, 1):
            g, start = gradients[name], before[name]
            first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g * g
            update = first / (1 - b1**t) / ((second / (1 - b2**t)).sqrt() + eps)
            update = update + decay_of(name, got, decay) * start
            if got.ndim >= 2:
                update = update * start.norm() / update.norm()
        torch.testing.assert_close(got, start - rate * update, rtol=1e-8, atol=1e-12, msg=name)


def test_adafactor_is_big_visions_as_in_timm():
    rate = 0.05
    args = {"beta2_cap": 0.95, "momentum_dtype": "float32"}
    _, got = one_step(Timm("adafactorbv", args, weight_decay=0.1), rate)
    model = Model().double()
    theirs = AdafactorBigVision(
        decaying(model, 0.1), lr=rate, beta2_cap=0.95, momentum=0.9, momentum_dtype=torch.float32
    )
    for _ in range(3):
        theirs.zero_grad()
        loss_of(model).backward()
        theirs.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(got[name], parameter), name


def test_muon_orthogonalises_the_blocks_matrices_only():
    rate = 0.02
    recipe = Timm("nmuon", {"momentum": 0.0}, weight_decay=0.0, fallback=["image.0.*"])
    trace, after = one_step(recipe, rate, steps=1)
    before, gradients = trace[0]
    model = Model()
    names = {id(p): n for n, p in model.named_parameters()}
    groups = recipe.build(model).param_groups
    muon = {names[id(p)] for g in groups if not g["use_fallback"] for p in g["params"]}
    assert muon == {"image.1.weight", "text.0.weight", "text.2.weight"}
    for name in muon:
        step = (before[name] - after[name]) / rate
        values = torch.linalg.svdvals(step)
        rank = int(torch.linalg.matrix_rank(gradients[name]))
        # Newton-Schulz makes singular values about 1; then the RMS is that of an AdamW step, 0.2.
        assert values[:rank].max() / values[:rank].min() < 2.5, name
        u, _, v = torch.linalg.svd(gradients[name], full_matrices=False)
        polar = u[:, :rank] @ v[:rank]
        cosine = (polar * step).sum() / polar.norm() / step.norm()
        assert cosine > 0.97, name
        assert 0.7 < values[:rank].mean() / (0.2 * max(step.shape) ** 0.5) < 1.3, name
    # The first step of (N)AdamW is the sign of the gradient.
    for name in set(after) - muon:
        moved = (before[name] - after[name]) / rate
        assert torch.equal(moved.sign(), gradients[name].sign()), name
