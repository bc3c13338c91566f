"""What each selector selects, on a small real module, and what a selector is as a value."""

import copy
import functools
import itertools
import pickle
import re

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from gradchain import selectors
from gradchain.selectors import Selector, bias, embedding, everything, min_ndim, named, ndim, norm, owner, resolve


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(4))
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.ln = nn.LayerNorm(4)
        self.words = nn.Embedding(9, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.head = nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.tensor(1.0))


def facts_of(module):
    return [(name, p, module.get_submodule(name.rpartition(".")[0])) for name, p in module.named_parameters()]


FACTS = facts_of(Net())
NAMES = [name for name, _, _ in FACTS]
CODE = {**vars(selectors), "torch": torch, "re": re}

WEIGHTS = {"conv.weight", "words.weight", "head.weight", "attention.in_proj_weight", "attention.out_proj.weight"}
BIASES = {"conv.bias", "bn.bias", "ln.bias", "head.bias", "attention.out_proj.bias"}
NORMS = {"bn.weight", "bn.bias", "ln.weight", "ln.bias"}
ROOT = {"cls", "scale"}


def matched(selector, facts=FACTS):
    return set(resolve(selector, facts, allow_empty=True))


def shape_only(name, parameter, owner):
    return parameter.numel() == 4


def test_the_tables_below_speak_of_every_parameter():
    """The net has the parameters these tables name, and no other."""
    assert set(NAMES) == WEIGHTS | BIASES | NORMS | ROOT | {"attention.in_proj_bias"}
    assert len(NAMES) == 15


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (everything, set(NAMES)),
        (bias, BIASES),
        (norm, NORMS),
        (embedding, {"words.weight"}),
        (min_ndim(0), set(NAMES)),
        (min_ndim(1), set(NAMES) - {"scale"}),
        (min_ndim(2), WEIGHTS),
        (min_ndim(4), {"conv.weight"}),
        (min_ndim(5), set()),
        (ndim(0), {"scale"}),
        (ndim(1), set(NAMES) - WEIGHTS - {"scale"}),
        (ndim(2), WEIGHTS - {"conv.weight"}),
        (ndim(3), set()),
        (ndim(4), {"conv.weight"}),
        (owner(nn.LayerNorm), {"ln.weight", "ln.bias"}),
        (owner(nn.Linear, nn.Conv2d), {n for n in NAMES if n.startswith(("head", "conv", "attention.out_proj"))}),
        (owner(nn.MultiheadAttention), {"attention.in_proj_weight", "attention.in_proj_bias"}),
        (owner(Net), ROOT),
        (owner(nn.Module), set(NAMES)),
        (named("cls"), {"cls"}),
        (named("bias"), set()),
        (named("*.bias"), BIASES),
        (named("*bias"), BIASES | {"attention.in_proj_bias"}),
        (named("attention.*"), {n for n in NAMES if n.startswith("attention.")}),
        (named("CLS"), set()),
        (named("[bl]n.weight"), {"bn.weight", "ln.weight"}),
        (named("?n.weight", "cls"), {"bn.weight", "ln.weight", "cls"}),
        (named(re.compile("(conv|head)[.]weight")), {"conv.weight", "head.weight"}),
        (named(re.compile("head")), set()),
        (named(re.compile("HEAD.*", re.IGNORECASE), "cls"), {"head.weight", "head.bias", "cls"}),
        (min_ndim(2) & ~(embedding | norm), WEIGHTS - {"words.weight"}),
        (bias & norm, {"bn.bias", "ln.bias"}),
        (ndim(0) | embedding | named("cls"), {"scale", "words.weight", "cls"}),
        (~min_ndim(1), {"scale"}),
        (bias & shape_only, {"conv.bias", "bn.bias", "ln.bias", "attention.out_proj.bias"}),
        (shape_only & bias, {"conv.bias", "bn.bias", "ln.bias", "attention.out_proj.bias"}),
        (shape_only | embedding, {n for n, p, _ in FACTS if p.numel() == 4} | {"words.weight"}),
        (embedding | shape_only, {n for n, p, _ in FACTS if p.numel() == 4} | {"words.weight"}),
        (~(everything & shape_only), {n for n, p, _ in FACTS if p.numel() != 4}),
        (everything & (lambda n, p, o: o is FACTS[0][2]), ROOT),
        (
            everything & functools.partial(lambda n, p, o, text: text in n, text="proj."),
            {n for n in NAMES if "proj." in n},
        ),
    ],
    ids=itertools.count(),  # by number: reprs of sets and functions differ from one worker process to the next
)
def test_selects_exactly(selector, expected):
    """Each selector selects the parameters written beside it and no others."""
    assert matched(selector) == expected


TORCH_NORMS = [
    nn.BatchNorm1d(2),
    nn.BatchNorm2d(2),
    nn.BatchNorm3d(2),
    nn.SyncBatchNorm(2),
    nn.LazyBatchNorm2d(),
    nn.InstanceNorm1d(2, affine=True),
    nn.InstanceNorm2d(2, affine=True),
    nn.InstanceNorm3d(2, affine=True),
    nn.GroupNorm(1, 2),
    nn.LayerNorm(2),
    *([nn.RMSNorm(2)] if hasattr(nn, "RMSNorm") else []),
]


@pytest.mark.parametrize("module", TORCH_NORMS, ids=lambda m: type(m).__name__)
def test_norm_knows_the_norms_of_torch(module):
    """Every torch normalisation module with parameters is a norm, and so is a subclass under another name."""
    assert dict(module.named_parameters())
    assert norm("weight", torch.ones(2), module)
    renamed = type("Tempered", (type(module),), {})
    assert norm("weight", torch.ones(2), renamed.__new__(renamed))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("LlamaRMSNorm", True),
        ("T5LayerNorm", True),
        ("LayerNorm2d", True),
        ("FrozenBatchNorm2d", True),
        ("Norm", True),
        ("Normalizer", False),
        ("NormLinear", False),
        ("LayerNormLSTMCell", False),
        ("WeightNorm", False),
        ("SpectralNorm", False),
        ("SpectralNorm2d", False),
    ],
)
def test_norm_knows_other_norms_by_the_end_of_their_class_name(name, expected):
    """A class that ends in Norm or Norm2d is a norm, also as a parent; weight and spectral norms are not."""
    custom = type(name, (nn.Module,), {})
    child = type("Child", (custom,), {})
    assert norm("weight", torch.ones(2), custom()) is expected
    assert norm("weight", torch.ones(2), child()) is expected


def test_bias_is_the_whole_last_name():
    """A root bias is a bias; in_proj_bias, bias_ih_l0 and bias.weight are not."""
    x = torch.ones(2)
    assert bias("bias", x, None)
    assert not any(bias(name, x, None) for name in ("in_proj_bias", "lstm.bias_ih_l0", "bias.weight", "abias"))


def test_embedding_bag_is_an_embedding():
    """EmbeddingBag and subclasses of Embedding hold embeddings."""
    assert embedding("weight", torch.ones(2, 2), nn.EmbeddingBag(2, 2))
    assert embedding("weight", torch.ones(2, 2), type("Words", (nn.Embedding,), {})(2, 2))


def test_what_needs_no_module_works_without():
    """Names and numbers of dimensions are known of a bare mapping of tensors."""
    bare = [(name, p, None) for name, p, _ in FACTS]
    for selector in (bias, everything, named("*.weight"), ndim(2), min_ndim(2)):
        assert matched(selector, bare) == matched(selector)


def test_a_bare_tensor_has_no_owner():
    """owner, norm and embedding say that they need a module, unless what stands before has decided already."""
    cure = "needs a module; here only a tensor is known, not what holds it. "
    cure += "Give the module itself, or select by name with named(...)."
    for selector in (owner(nn.LayerNorm), norm, embedding):
        with pytest.raises(ValueError, match=re.escape(f"{selector!r} {cure}") + "$"):
            selector("w", torch.ones(2), None)
    assert not (min_ndim(2) & ~norm)("w", torch.ones(2), None)


class starts(Selector):
    prefix: str
    cased: bool = True

    def __call__(self, name, parameter, owner):
        return name.startswith(self.prefix)


LEAVES = [
    everything,
    bias,
    norm,
    embedding,
    ndim(2),
    min_ndim(2),
    owner(nn.Linear, nn.LayerNorm),
    named("*.bias"),
    named("cls", re.compile(".*proj.*", re.IGNORECASE | re.MULTILINE), missing_ok=True),
    named("it's", 'say "hi"', "both ' and \"", "ünïcode\\", missing_ok=True),
    starts("head"),
]
EXPRESSIONS = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a: ~a, inner),
    ),
    max_leaves=8,
)


@given(EXPRESSIONS, EXPRESSIONS, EXPRESSIONS)
def test_the_algebra_is_boolean(a, b, c):
    """Selected sets obey &, | and ~ as sets, with De Morgan, involution, idempotence, absorption, distribution."""
    full, x, y = set(NAMES), matched(a), matched(b)
    assert matched(a & b) == x & y
    assert matched(a | b) == x | y
    assert matched(~a) == full - x
    assert matched(~(a & b)) == matched(~a | ~b)
    assert matched(~(a | b)) == matched(~a & ~b)
    assert matched(~~a) == matched(a & a) == matched(a | a) == matched(a & (a | b)) == matched(a | (a & b)) == x
    assert matched(a & (b | c)) == matched((a & b) | (a & c))
    assert matched(a & everything) == x
    assert matched(a | everything) == full


@given(EXPRESSIONS)
def test_a_selector_is_a_value(selector):
    """The repr evaluates to an equal selector; so do pickle, deepcopy and arguments(); equal ones hash alike."""
    written = eval(repr(selector), {**CODE, __name__: type("module", (), {"starts": starts}), "starts": starts})
    carried = pickle.loads(pickle.dumps(selector))
    args, kwargs = selector.arguments()
    for other in (written, carried, copy.deepcopy(selector), type(selector)(*args, **kwargs)):
        assert other == selector
        assert hash(other) == hash(selector)
        assert repr(other) == repr(selector)
        assert matched(other) == matched(selector)


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        (named("*.bias"), 'named("*.bias")'),
        (named("a", missing_ok=True), 'named("a", missing_ok=True)'),
        (named(re.compile("a" * 300)), f"named(re.compile('{'a' * 300}'))"),
        (named(re.compile(r"\d", re.I)), r"named(re.compile('\\d', re.IGNORECASE))"),
        (owner(nn.LayerNorm, nn.Linear), "owner(torch.nn.LayerNorm, torch.nn.Linear)"),
        (owner(Net), f"owner({__name__}.Net)"),
        (min_ndim(2) & ~bias, "min_ndim(2) & ~bias"),
        (ndim(0) | norm & bias, "ndim(0) | norm & bias"),
        ((ndim(0) | norm) & bias, "(ndim(0) | norm) & bias"),
        (bias & (norm & embedding), "bias & norm & embedding"),
        (bias | (norm | embedding), "bias | norm | embedding"),
        (~(bias | norm), "~(bias | norm)"),
        (~(bias & norm), "~(bias & norm)"),
        (~bias & norm, "~bias & norm"),
        (~~bias, "bias"),
        (shape_only & bias, "shape_only & bias"),
        (bias | (lambda n, p, o: True), "bias | <lambda>"),
        (starts("a", cased=False), 'starts("a", False)'),
    ],
)
def test_repr_is_the_code(selector, text):
    """The repr has the operators, the parentheses they need, and no others."""
    assert repr(selector) == text


def test_ready_made_values_survive_copying():
    """bias, norm, embedding and everything are the same object after pickle and copy."""
    for value in (bias, norm, embedding, everything):
        assert pickle.loads(pickle.dumps(value)) is value
        assert copy.copy(value) is copy.deepcopy(value) is value


def test_selectors_that_differ_are_unequal():
    """Class, argument, operator and order tell selectors apart."""
    different = [ndim(2), min_ndim(2), ndim(3), named("a"), named("b"), named("a", missing_ok=True), ~ndim(2)]
    different += [bias, norm, bias & norm, bias | norm, norm & bias, owner(nn.Linear), owner(nn.Conv2d)]
    assert len(set(different)) == len(different)


def test_selectors_are_frozen():
    """A field cannot be assigned."""
    with pytest.raises(AttributeError, match="cannot assign to field 'n'"):
        ndim(2).n = 3


def sentence(kind, text):
    return pytest.raises(kind, match=f"^{re.escape(text)}$")


NEEDS = "a selector must be a function (name, parameter, owner) -> bool, got"


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: min_ndim(-1), ValueError, "min_ndim: n must be a non-negative integer, got -1."),
        (lambda: ndim(2.0), ValueError, "ndim: n must be a non-negative integer, got 2.0."),
        (lambda: ndim(True), ValueError, "ndim: n must be a non-negative integer, got True."),
        (lambda: ndim("2"), ValueError, 'ndim: n must be a non-negative integer, got "2".'),
        (
            lambda: named(),
            ValueError,
            'named: needs at least one pattern, got none. Write named("head.*"), or everything.',
        ),
        (
            lambda: named("a", ""),
            ValueError,
            'named: a pattern must not be empty. For every parameter write "*", or everything.',
        ),
        (lambda: named(["a"]), TypeError, "named: takes patterns one by one, got a list. Write named(*patterns)."),
        (
            lambda: named(nn.Linear),
            TypeError,
            "named: a pattern must be a string (a glob) or a compiled regex of strings, got torch.nn.Linear. "
            "For a class of modules write owner(...).",
        ),
        (
            lambda: named(re.compile(b"a")),
            TypeError,
            "named: a pattern must be a string (a glob) or a compiled regex of strings, got re.compile(b'a'). "
            "For a class of modules write owner(...).",
        ),
        (lambda: named("a", missing_ok=1), TypeError, "named: missing_ok must be True or False, got 1."),
        (
            lambda: owner(),
            ValueError,
            "owner: needs at least one class of modules, got none. Write owner(torch.nn.LayerNorm).",
        ),
        (
            lambda: owner(nn.Linear(1, 1)),
            TypeError,
            "owner: takes classes of modules, got a Linear module. Write owner(torch.nn.Linear).",
        ),
        (
            lambda: owner((nn.Linear, nn.Conv2d)),
            TypeError,
            "owner: takes classes of modules, got a tuple. Write owner(*module_types).",
        ),
        (
            lambda: owner("head"),
            TypeError,
            'owner: takes classes of modules, got "head". For names of parameters write named(...).',
        ),
        (
            lambda: owner(3),
            TypeError,
            "owner: takes classes of modules, got 3. Write owner(torch.nn.LayerNorm).",
        ),
        (
            lambda: selectors.ready.ready_made("bais"),
            ValueError,
            'ready_made: label must be one of bias, norm, embedding, depthwise, everything, got "bais".',
        ),
        (lambda: bias | "*.scale", TypeError, f'|: {NEEDS} "*.scale". Write named("*.scale").'),
        (lambda: "*.scale" & bias, TypeError, f'&: {NEEDS} "*.scale". Write named("*.scale").'),
        (lambda: bias | nn.Linear, TypeError, f"|: {NEEDS} the class torch.nn.Linear. Write owner(torch.nn.Linear)."),
        (lambda: nn.Linear | bias, TypeError, f"|: {NEEDS} the class torch.nn.Linear. Write owner(torch.nn.Linear)."),
        (
            lambda: bias & named,
            TypeError,
            f"&: {NEEDS} the class gradchain.selectors.names.named. Call it: named(...).",
        ),
        (
            lambda: bias & nn.Linear(1, 1),
            TypeError,
            f"&: {NEEDS} a Linear module. Write owner(torch.nn.Linear), or its name: named(...).",
        ),
        (lambda: bias & True, TypeError, f"&: {NEEDS} True. See gradchain.selectors for ready ones."),
        (
            lambda: bias and norm,
            TypeError,
            "bias has no truth value. Combine selectors with & | ~, not with and, or, not.",
        ),
        (
            lambda: not bias & norm,
            TypeError,
            "bias & norm has no truth value. Combine selectors with & | ~, not with and, or, not.",
        ),
        (
            lambda: type("mine", (ndim,), {}),
            TypeError,
            "mine: ndim is final, and mine subclasses it. Subclass Selector, or combine selectors with & | ~.",
        ),
    ],
)
def test_wrong_use_gets_a_sentence(make, kind, text):
    """What cannot be is refused where it is written, with the value and the cure."""
    with sentence(kind, text):
        make()
