"""Config files of OpenMMLab: read without running them, beside mmengine.Config itself."""

import random
import re
import warnings

import pytest
from later import later

from gradchain.adapters import mmengine

# The files of a tree, each after its name; the last is what is read.
TREES = {
    "literals": r"""
# config.py
a = 1
b = [1, 2.5, 'x', None, True]
c = (1, -2, +3)
d = {'k': {'l': 1e-4}, 3: 4}
e = ()
""",
    "calls": r"""
# config.py
a = dict(b=1, c=dict(d=2))
e = list((1, 2))
f = tuple([1])
g = dict(a, b=3)
h = dict(**a, i=1)
""",
    "unpacked": r"""
# config.py
a = [1]
b = [*a, 2]
c = dict(x=1)
d = {**c, 'y': 2}
x, y = 1, 2
[p, q] = [x, y]
""",
    "arithmetic": r"""
# config.py
n = 8
lr = 0.01 * n / 4 + 2 ** -3 - 7 // 2 + 7 % 4
m = -n
k = [0.5] * 3 + [1]
t = (1,) + (2,)
u = not n
""",
    "text": r"""
# config.py
n = 8
x = 0.123
a = f'{n}xb{x:.2f} {n!r:>4}'
b = '%d of %s, %5.2f' % (n, 'all', x)
c = 'runs/' + a
d = '-' * 4
e = '%s' % n
""",
    "places": r"""
# config.py
a = [1, 2, 3, 4]
b = a[1:]
c = a[-1]
d = dict(x=dict(y=[5]))
e = d['x']['y'][0]
f = a[::-1]
""",
    "changes": r"""
# config.py
a = dict(x=1, y=2)
a['z'] = [1]
a['z'] += [2]
del a['x']
b = 1
b += 2
b *= 1.5
c: int = 4
f = [1]
g = f
g += [2]
h = 5
del h
""",
    "methods": r"""
# config.py
a = dict(x=dict(y=1))
a.update(x=dict(z=2))
a.update(dict(w=3))
b = a.pop('w')
c = [1]
c.append(2)
c.extend([3])
c.insert(0, 0)
d = c.pop()
e = a.get('none', 7)
f = a.copy()
f['x'] = 0
""",
    "aliases": r"""
# config.py
a = dict(x=1)
b = a
b['x'] = 2
c = [a, a]
""",
    "docstring and private names": r"""
# config.py
'''What it is.'''
__x = 1
_y = 2
pass
z = _y
""",
    "one base": r"""
# base.py
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
# config.py
_base_ = 'base.py'
optim_wrapper = dict(optimizer=dict(lr=0.1))
new = 1
""",
    "bases of bases": r"""
# a/b/base.py
x = dict(p=dict(q=1, r=2))
# a/mid.py
_base_ = './b/base.py'
x = dict(p=dict(q=3))
y = [1]
# c/config.py
_base_ = '../a/mid.py'
x = dict(p=dict(s=4), t=5)
""",
    "several bases": r"""
# one.py
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
# two.py
train_cfg = dict(max_epochs=3)
# config.py
_base_ = ['one.py', './two.py']
""",
    "lists are replaced": r"""
# base.py
x = [dict(a=1), dict(b=2)]
# config.py
_base_ = 'base.py'
x = [dict(c=3)]
""",
    "delete": r"""
# base.py
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
# config.py
_base_ = 'base.py'
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-3))
""",
    "delete at the top": r"""
# base.py
x = dict(a=1)
# config.py
_base_ = ['base.py']
x = dict(_delete_=True, b=2)
""",
    "delete says False": r"""
# base.py
x = dict(a=1)
# config.py
_base_ = 'base.py'
x = dict(_delete_=False, b=2)
""",
    "delete of nothing stays": r"""
# base.py
y = 1
# config.py
_base_ = 'base.py'
x = dict(_delete_=True, b=2)
""",
    "delete over a number": r"""
# base.py
x = 1
# config.py
_base_ = 'base.py'
x = dict(_delete_=True, b=2)
""",
    "a number over a dict": r"""
# base.py
x = dict(a=1)
# config.py
_base_ = 'base.py'
x = None
""",
    "reference": r"""
# base.py
lr = 0.1
x = dict(y=[1, 2], z='t')
# config.py
_base_ = 'base.py'
a = {{_base_.lr}}
b = dict(c=[{{ _base_.x.y }}], d={{_base_.x.z}})
x = dict(w=a)
""",
    "attributes of the base": r"""
# base.py
lr = 0.1
x = dict(y=[dict(end=1), 2])
# config.py
_base_ = 'base.py'
a = _base_.lr * 2
b = _base_.x.y[0].end
c = _base_.x['y']
_base_.x.y[0].end = 9
_base_.x.y.append(3)
d = _base_.x.y
""",
    "update of the base merges": r"""
# base.py
x = dict(y=dict(z=1, w=2))
# config.py
_base_ = 'base.py'
_base_.x.update(y=dict(z=3), v=4)
a = _base_.x.pop('none')
b = _base_.x.get('v')
_base_.x.y.clear()
""",
    "path": r"""
# config.py
a = '{{ fileDirname }}/x'
b = '{{fileBasename}}'
c = 'w/{{ fileBasenameNoExtension }}{{fileExtname}}'
""",
    "environment": r"""
# config.py
a = '{{$GRADCHAIN_NONE:here}}/x'
n = {{'$GRADCHAIN_NONE:80'}}
m = {{'$GRADCHAIN_SOME:1'}}
""",
    "json": r"""
# config.json
{"a": {"b": [1, null]}, "c": 0.001}
""",
    "json and bases": r"""
# base.py
x = dict(a=1, b=2)
# config.json
{"_base_": "base.py", "x": {"a": 3}, "y": {{_base_.x.b}}}
""",
    "of json": r"""
# base.json
{"x": {"a": 1}}
# config.py
_base_ = './base.json'
x = dict(b=2)
""",
    "imported classes": r"""
# config.py
from torch.optim import AdamW, SGD as Plain
import mmdet.models as models
from mmengine.optim import OptimWrapper
w = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=1))
v = [dict(type=Plain)]
m = models.Net
""",
    "read_base": r"""
# _base_/opt.py
from torch.optim import SGD
optim_wrapper = dict(optimizer=dict(type=SGD, lr=0.1))
n = 3
# _base_/run.py
train_cfg = dict(max_epochs=3)
other = 1
# sub/config.py
from mmengine.config import read_base
with read_base():
    from .._base_.opt import *
    from .._base_.run import train_cfg as cfg
optim_wrapper.update(dict(optimizer=dict(lr=0.2)))
optim_wrapper.optimizer.momentum = 0.9
cfg.max_epochs += 1
y = n * 2
""",
    "read_base of read_base": r"""
# a.py
x = dict(y=dict(z=1))
# b.py
from mmengine.config import read_base
with read_base():
    from .a import *
x.update(y=dict(w=2))
# config.py
from mmengine.config import read_base
with read_base():
    from .b import *
x = dict(x, v=3)
""",
    "deprecated": r"""
# base.py
_deprecation_ = dict(expected='new.py')
x = 1
# config.py
_base_ = 'base.py'
y = 2
""",
}

# Both refuse; the sentence is ours.
REFUSED = {
    "no file": (
        r"""
# other.py
x = 1
""",
        r"config.py: it cannot be read",
    ),
    "no base": (
        r"""
# config.py
_base_ = 'none.py'
""",
        r"none.py, which .*config.py inherits from: it cannot be read",
    ),
    "twice": (
        r"""
# a.py
x = dict(a=1)
y = 1
# b.py
x = dict(b=1)
# config.py
_base_ = ['a.py', 'b.py']
""",
        r"config.py: its bases must have no name in common, got x.$",
    ),
    "dict over a number": (
        r"""
# a.py
x = dict(y=1)
# config.py
_base_ = 'a.py'
x = dict(y=dict(z=1))
""",
        r"y: a dict over 1 must have `_delete_=True`\.",
    ),
    "syntax": (
        r"""
# config.py
x = (1
""",
        r"config.py: it is no Python",
    ),
    "no such name": (
        r"""
# config.py
x = y
""",
        r"line 1: `y`: the name has no value here",
    ),
    "no such key": (
        r"""
# config.py
x = dict(a=1)
y = x['b']
""",
        r"line 2: `x\['b'\]`: fails with KeyError: 'b'",
    ),
    "no such attribute": (
        r"""
# a.py
x = 1
# config.py
_base_ = 'a.py'
y = _base_.z
""",
        r"there is no 'z' to read",
    ),
    "attribute of a plain dict": (
        r"""
# config.py
x = dict(a=1)
y = x.a
""",
        r"line 2: `x.a`: there is no 'a' to read",
    ),
    "no such reference": (
        r"""
# a.py
x = 1
# config.py
_base_ = 'a.py'
y = {{_base_.z}}
""",
        r"y: the bases have no 'z'",
    ),
    "division by zero": (
        r"""
# config.py
x = 1 / 0
""",
        r"fails with ZeroDivisionError: division by zero",
    ),
    "wrong types": (
        r"""
# config.py
x = 'a' + 1
""",
        r"line 1: `'a' \+ 1`: this arithmetic is not read",
    ),
    "argument twice": (
        r"""
# config.py
a = dict(b=1)
x = dict(**a, b=2)
""",
        r"'b' is given twice",
    ),
    "reserved": (
        r"""
# config.py
filename = 'x'
""",
        r"'filename' is reserved",
    ),
    "no variable": (
        r"""
# config.py
x = '{{$GRADCHAIN_NONE:}}'
""",
        r"the variable is not set, and has no default",
    ),
    "suffix": (
        r"""
# config.toml
x = 1
""",
        r"it must be a .py or .json file",
    ),
    "package": (
        r"""
# config.py
_base_ = 'nomm::x.py'
""",
        r"package 'nomm', which is not installed",
    ),
    "star": (
        r"""
# config.py
from mmdet.models import *
x = 1
""",
        r"line 1: `from mmdet.models import \*`: what it brings",
    ),
    "no such name in a base": (
        r"""
# a.py
x = 1
# config.py
from mmengine.config import read_base
with read_base():
    from .a import y
""",
        r"line 3: .*a.py has no 'y'",
    ),
    "no such base module": (
        r"""
# config.py
from mmengine.config import read_base
with read_base():
    from .a import *
""",
        r"a.py, which .*config.py inherits from",
    ),
    "statement in read_base": (
        r"""
# config.py
from mmengine.config import read_base
with read_base():
    x = 1
""",
        r"line 3: `with read_base\(\):` must hold",
    ),
    "two ways": (
        r"""
# a.py
x = 1
# config.py
_base_ = 'a.py'
with read_base():
    from .a import *
""",
        r"by `_base_` or by `with read_base\(\):`, not by both",
    ),
    "nothing to delete": (
        r"""
# config.py
del x
""",
        r"line 1: `del x`: fails with KeyError: 'x'",
    ),
    "unequal": (
        r"""
# config.py
a, b = 1, 2, 3
""",
        r"there must be 2 values",
    ),
    "no place": (
        r"""
# config.py
a = [1]
a[3] = 2
""",
        r"line 2: `a\[3\] = 2`: fails with IndexError: list assignment",
    ),
    "nothing in it": (
        r"""
# config.json
{
""",
        r"config.json: it is no JSON",
    ),
}

# MMEngine runs these; ours names the line and what stands there.
NOT_RUN = {
    "x = open('secret').read()": "a call",
    "x = __import__('os').getcwd()": "a call",
    "import os\nx = os.getcwd()": "a call",
    "x = lambda: 1": "a function",
    "class A:\n    pass": "a class",
    "try:\n    x = 1\nfinally:\n    x = 2": "a try",
    "x = (i for i in (1, 2))": "a generator",
    "x = {i for i in (1, 2)}": "a comprehension",
    "x = max([1], key=len)": "a function is read where it is called only",
    "x = {1, 2}": "a set",
    "x = 'a,b'.partition(',')": "a call",
    "x = (y := 2)": "NamedExpr",
    "x = 9 ** 9 ** 9": "too large",
    "x = [0] * 10 ** 12": "too large",
    "x = f'{1:1000000000}'": "too large",
    "x = '%1000000000d' % 1": "too large",
    "dict = 1\nx = dict()": "a call",
}  # fmt: skip


def write(folder, files):
    """The files of a tree; the path of the last one."""
    if isinstance(files, str):
        names = re.findall(r"^# (.*)$", files, re.MULTILINE)
        files = dict(zip(names, re.split(r"^# .*\n", files, flags=re.MULTILINE)[1:], strict=True))
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return path


def by_mmengine(path):
    """What MMEngine reads, without what stands for a place in its packages: the module of a class, `_scope_`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return without_scope(later("mmengine").Config.fromfile(path).to_dict())


def without_scope(value):
    if isinstance(value, dict):
        return {key: without_scope(one) for key, one in value.items() if key != "_scope_"}
    return type(value)(map(without_scope, value)) if isinstance(value, (list, tuple)) else value


def same(ours, theirs):
    """Equal in values, types and order; the name of a class is the end of its path."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, (list, tuple)) and type(ours) is type(theirs):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, str) and isinstance(theirs, str):
        return ours in (theirs, theirs.rpartition(".")[2])
    return type(ours) is type(theirs) and ours == theirs


@pytest.mark.parametrize("name", TREES)
def test_a_tree_is_read_as_mmengine_reads_it(name, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADCHAIN_SOME", "6")
    path = write(tmp_path, TREES[name])
    ours, theirs = mmengine.read_config(path), by_mmengine(path)
    assert theirs
    assert same(ours, theirs), f"{ours}\n{theirs}"


@pytest.mark.parametrize("name", REFUSED)
def test_what_mmengine_refuses_is_refused(name, tmp_path):
    files, sentence = REFUSED[name]
    path = write(tmp_path, files)
    if name == "no file":
        path = tmp_path / "config.py"
    with pytest.raises((ValueError, FileNotFoundError), match=sentence) as ours:
        mmengine.read_config(path)
    assert str(ours.value).startswith("mmengine.read_config: ")
    with pytest.raises(Exception):  # noqa: B017  # of whatever type: MMEngine lets Python's own through
        by_mmengine(path)


@pytest.mark.parametrize("code", NOT_RUN)
def test_what_would_have_to_be_run_is_named(code, tmp_path):
    path = write(tmp_path, {"config.py": f"before = 1\n{code}"})
    with pytest.raises(ValueError, match=NOT_RUN[code]) as error:
        mmengine.read_config(path)
    assert f"{path}, line " in str(error.value)
    assert f"line {2 if chr(10) not in code or code.startswith(('def', 'class', 'while', 'try')) else 3}: `" in str(
        error.value
    )


def test_a_circle_of_files_is_named(tmp_path):
    path = write(tmp_path, {"a.py": "_base_ = 'config.py'", "config.py": "_base_ = 'a.py'"})
    with pytest.raises(ValueError, match=r"config\.py: it inherits from itself\."):
        mmengine.read_config(path)


@pytest.mark.parametrize("code", ["x = []\nx.append(x)", "x = " + "-" * 20_000 + "1"])
def test_what_is_too_deep_is_an_error(code, tmp_path):
    with pytest.raises(ValueError, match=r"config\.py"):
        mmengine.read_config(write(tmp_path, {"config.py": code}))


def test_a_reference_within_text_is_an_error(tmp_path):
    """MMEngine puts a name with random letters there."""
    path = write(tmp_path, {"a.py": "x = 1", "config.py": "_base_ = 'a.py'\ny = 'a' + {{_base_.x}}"})
    with pytest.raises(ValueError, match=r"y: a reference .* must stand alone"):
        mmengine.read_config(path)


def test_packages_are_found_and_not_imported(tmp_path, monkeypatch):
    write(tmp_path, {"pkgcfg/__init__.py": "raise SystemExit", "pkgcfg/.mim/configs/d/base.py": "x = dict(a=1)"})
    write(tmp_path, {"pkgcfg/configs/new.py": "z = 4"})
    monkeypatch.syspath_prepend(str(tmp_path))
    old = write(tmp_path / "mine", {"old.py": "_base_ = 'pkgcfg::d/base.py'\nx = dict(b=2)"})
    assert mmengine.read_config(old) == {"x": {"a": 1, "b": 2}}
    new = write(tmp_path / "mine", {"new.py": "with read_base():\n    from pkgcfg.configs.new import *"})
    assert mmengine.read_config(new) == {"z": 4}


# Statements that are not read, after `x = dict(a=1)`, `y = x`, `z = [dict(b=1)]`, `n = 1`: what may have changed.
SPOILED = {
    "t = [i for i in n]": {"t"},
    "x.popitem()": {"x", "y"},
    "for i in open('f'): z[0]['b'] = 2": {"i", "z"},
    "for i in z: i['b'] = open('f')": {"i", "z"},
    "if open('f'): n = 2": {"n"},
    "n = max(n, len(open('f')))": {"n"},
    "t = [open(n) for n in z]": {"t", "z"},
    "t = {n: open(k) for n, k in z}": {"t", "z"},
    "def f(k): n = k": {"f"},
    "def f(k):\n    n = k\nf(1)": {"f"},
    "t = open(lambda n: n)": {"t"},
    "assert open('f')": set(),
    "def f(): x['a'] = 2\nf()": {"f", "x", "y"},
    "def f():\n    global n\n    n = 2\nf()": {"f", "n"},
    "def f():\n    z.append(1)\n    return lambda z: z\nf()": {"f", "z"},
    "match open('f'):\n    case [n, *k]: pass\n    case {'a': 1, **x}: pass": {"n", "k", "x", "y"},
    "def f():\n    global n\n    n = 2\nn = 1\nf()": {"f", "n"},
    "def f(): x['a'] = 2\nx = dict(a=1)\nf()": {"f", "x"},
    "exec('n = 2')": {"n", "x", "y", "z", "k"},
    "import os\nfor w in os.walk('.'): z.append(w)": {"w", "z"},
}


@pytest.mark.parametrize("code", SPOILED)
def test_only_what_an_unread_statement_may_have_changed_is_left_out(code, tmp_path):
    text = f"x = dict(a=1)\ny = x\nz = [dict(b=1)]\nn = 1\nk = dict(c=n)\n{code}"
    path = write(tmp_path, {"config.py": text})
    whole = {"x": {"a": 1}, "y": {"a": 1}, "z": [{"b": 1}], "n": 1, "k": {"c": 1}}
    assert mmengine.read_config(path, only=()) == {n: v for n, v in whole.items() if n not in SPOILED[code]}
    for name in SPOILED[code] & whole.keys():
        with pytest.raises(ValueError, match=r"is not read|there must be 2 values"):
            mmengine.read_config(path, only=[name])


def test_what_is_not_read_follows_the_inheritance(tmp_path):
    files = {
        "a.py": "bad = open('f')\nalso = dict(x=bad)\ngood = dict(p=1)",
        "config.py": "_base_ = 'a.py'\ngood = dict(q=2)\nalso = dict(y=1)\nfrom_it = _base_.bad\n"
        "too = dict(r={{_base_.bad}})\nbad = 3",
    }
    path = write(tmp_path, files)
    assert mmengine.read_config(path, only=["good"]) == {"good": {"p": 1, "q": 2}, "bad": 3}
    for name in ("also", "from_it", "too"):
        with pytest.raises(ValueError, match=r"a\.py, line 1: `open\('f'\)`: a call is not read"):
            mmengine.read_config(path, only=[name])


def random_dict(draw, depth):
    """A nested dict of few names, so that two of them meet; now and then a dict has another value's name."""
    out = {}
    for _ in range(draw.randint(1, 5)):
        kind = draw.random()
        key = draw.choice("abc" if (kind < 0.5) is (draw.random() < 0.97) else "xyz")
        if kind < 0.5 and depth:
            out[key] = random_dict(draw, depth - 1)
        elif kind >= 0.5:
            nested = [random_dict(draw, depth - 1)] if depth else []
            out[key] = draw.choice([draw.randint(0, 99), None, "text", 0.5, [*nested, (1, 2)]])
    if draw.random() < 0.15:
        out["_delete_"] = draw.random() < 0.9
    return out


@pytest.mark.parametrize("seed", range(20))
def test_random_dicts_merge_as_mmengine_merges_them(seed, tmp_path):
    """Ten trees per seed, of a base, its heir and its heir's heir."""
    draw = random.Random(seed)
    merged = refused = 0
    for i in range(10):
        texts = []
        for _ in range(3):
            names = random_dict(draw, 3)
            names.pop("_delete_", None)
            texts.append("\n".join(f"{name} = {value!r}" for name, value in names.items()))
        files = {
            f"{i}/a.py": texts[0],
            f"{i}/b.py": f"_base_ = 'a.py'\n{texts[1]}",
            f"{i}/c.py": f"_base_ = './b.py'\n{texts[2]}",
        }
        path = write(tmp_path, files)
        try:
            theirs = by_mmengine(path)
        except TypeError:
            with pytest.raises(ValueError, match="must have `_delete_=True`"):
                mmengine.read_config(path)
            refused += 1
            continue
        ours = mmengine.read_config(path)
        assert same(ours, theirs), f"{files}\n{ours}\n{theirs}"
        merged += 1
    assert merged > refused
