"""Config files that say more than literals: conditions, loops and comprehensions, beside mmengine.Config itself."""

import itertools
import os
import resource

import pytest
from test_mmengine_files import by_mmengine, same, write

from gradchain.adapters import mmengine
from gradchain.adapters.mmengine.reading import budget
from gradchain.adapters.mmengine.reading.files import read_names

# What both read alike; each after `n = 4`, `names = ['a', 'b']`, `sizes = dict(h=64, w=32)`, `flag = False`.
READ = [
    "if flag:\n    x = 1\nelse:\n    x = 2",
    "if n > 3 and not flag:\n    x = [1]\n    x += [2]",
    "if n == 1:\n    x = 1\nelif 'a' in names:\n    x = 2",
    "hooks = [dict(type='A')]\nif flag:\n    hooks += [dict(type='B')]",
    "hooks = [dict(type='A')]\nif not flag:\n    hooks.append(dict(type='B', k=n))",
    "x = 1 if flag else 'no'",
    "x = flag or n",
    "x = flag and n",
    "x = None or names",
    "x = 1 < n <= 4 != 5",
    "x = n is None",
    "x = [n is not None, 'c' not in names, 'h' in sizes]",
    "x = [i * 2 for i in range(n)]",
    "x = [i for i in range(n) if i % 2]",
    "x = {f'stage{i}': dict(decay_mult=0.0) for i in range(n)}",
    "x = {k: v // 32 for k, v in sizes.items()}",
    "x = tuple([s // 32 for s in sizes.values()])",
    "depths = [2, 3]\nx = {f'{i}.{j}': 1 for i, d in enumerate(depths) for j in range(d)}",
    "x = [[i, j] for i in names for j in names if i != j]",
    "x = [[j for j in range(i)] for i in range(3)]",
    "n = 9\nx = [n for n in range(2)]\ny = n",
    "x = {}\nx.update({f's{i}': i for i in range(3)})",
    "a = dict(k=1)\na.update({f's{i}': i for i in range(len(names) - 1)})\nx = a",
    "x = int(n * 1.2)",
    "x = int('12') + float('1e-3')",
    "x = [len(names), max(1, n, 2), min([3, 1]), abs(-2), round(2.567, 1), sum([1, 2]), str(n) + 'x', bool(names)]",
    "x = max(v for v in sizes.values())",
    "x = sum(i for i in range(n))",
    "x = sorted(names, reverse=True)",
    "x = list(range(2, 8, 2)) + list(reversed(names))",
    "x = list(zip(names, range(2)))",
    "x = dict(zip(names, range(2)))",
    "x = all(len(a) == 1 for a in names) and any([flag, n])",
    "x = [round(v) for v in [103.53, 116.28][::-1]]",
    "x = 'lr_{}_{:.2f}_{k}_{{}}'.format(n, 0.5, k=names[0])",
    "x = ','.join(names) + ' a '.strip() + 'abc'.replace('a', 'z') + names[-1].upper()",
    "x = 'A,B'.lower().split(',') + 'a.b.c'.rsplit('.', 1)",
    "x = 'data'.startswith('d') and names[0].endswith('a')",
    "x = [names.index('b'), names.count('a')]",
    "y = names\nnames.reverse()\nnames.remove('a')\nx = y",
    "x = names.copy()\nx.clear()",
    "x = sizes.setdefault('q', 5)\ny = sizes",
    "sizes.clear()\nx = sizes",
    "x = tuple(i for i in range(3)) + tuple(names) + tuple(list('ab'))",
    "x = divmod(7, 2)",
    "a, *b = [1, 2, 3]\n*c, d = 'e', 'f'\nx = b + c + [a, d]",
    "(a, *b), c = (1, 2, 3), 4\nx = [b, c]",
    "x: int = 3\ny: float",
    "i = 0\nwhile i < 9:\n    i += 1\n    if i == n:\n        continue\n    if i > 6:\n        break\nx = i",
    "i = 0\nwhile i < n:\n    i += 1\nelse:\n    x = -i",
    "def f(a):\n    names.append(a)\n    return a * 2\nx = names",
    "x = sizes | dict(d=1, h=0)",
    "y = sizes\nsizes |= dict(d=1)\nx = y",
    "x = []\nfor i in range(3):\n    x.append(dict(end=i))",
    "x = {}\nfor i, name in enumerate(names):\n    x[name] = i\n    if i == 0:\n        continue\n    x['last'] = name",
    "x = 0\nfor i in range(9):\n    if i == n:\n        break\n    x += i\nelse:\n    x = -1",
    "for k, v in sizes.items():\n    x = [k, v]",
    "x = 0\nfor k in sizes:\n    x += sizes[k]",
    "assert n == 4\nassert flag is False, 'text'\nx = 1",
    "x = [c for c in 'abc']",
    "a = [1]\nif True:\n    b = a\n    b += [2]\nx = a",
    "if flag:\n    pass\nx = 1",
    "lr = 0.1\nx = [dict(type='LinearLR', end=e) for e in (1, 2)] + [dict(lr=lr)]",
    "x = ' '.join(str(i) for i in range(3)) + 'abc'.replace('a', 'b', 1) + 'a b'.split(sep=' ')[0]",
    "x = [max(*names), dict((k, 1) for k in names), dict(*[sizes]), ~n, '%s %s' % ('a', None)]",
    "x = [0 for sizes['h'] in names]\ny = sizes",
    "names\nn + 1\nx = 1",
]


@pytest.mark.parametrize("code", READ)
def test_what_is_known_is_worked_out_as_python_does(code, tmp_path):
    """Values, types, order and the names that stay, of loops too and of comprehensions not."""
    before = "n = 4\nnames = ['a', 'b']\nsizes = dict(h=64, w=32)\nflag = False\n"
    path = write(tmp_path, {"config.py": before + code})
    ours, theirs = mmengine.read_config(path), by_mmengine(path)
    assert same(ours, theirs), f"{ours}\n{theirs}"
    assert "x" in ours or "hooks" in ours


def test_variables_of_comprehensions_are_no_names(tmp_path):
    """Two bases may have the same, also where a comprehension is not read; those of loops are names, and clash."""
    line = "a{} = {{key: value for key, value in dict(p=1).items()}}\nb{} = [open(key) for key in [1]]"
    bases = {f"{i}.py": line.format(i, i) for i in (1, 2)}
    path = write(tmp_path, {**bases, "config.py": "_base_ = ['1.py', '2.py']\nc = 1"})
    found, unread = read_names(path, only=["a1"])
    assert found == {"a1": {"p": 1}, "a2": {"p": 1}, "c": 1} and unread == ["b1", "b2"]
    loops = {f"{i}.py": "for key in [1]:\n    pass" for i in (1, 2)}
    path = write(tmp_path, {**loops, "config.py": "_base_ = ['1.py', '2.py']"})
    with pytest.raises(ValueError, match="no name in common, got key"):
        mmengine.read_config(path)


# after `from torch.optim import AdamW`: what is refused, by its sentence
REFUSED = {
    "x = 1 if AdamW else 2": "what an import brought is not known here",
    "x = AdamW == 1": "what an import brought is not known here",
    "x = len(AdamW)": "what an import brought is not known here",
    "x = [i for i in AdamW]": "what an import brought is not known here",
    "if n:\n    x = 1": "the name has no value here",
    "assert 1 > 2": "`1 > 2` is asserted, and is not so",
    "for i in 5:\n    x = i": "only lists, dicts, text and ranges are gone through",
    "for i in range(10 ** 9):\n    x = i": "too large to be meant",
    "x = str([1])": "only numbers and text are put into text",
    "x = int('a')": "fails with ValueError",
    "x = 'a' < 1": "fails with TypeError",
    "x = max([])": "fails with ValueError",
    "x = [a for a, b in [1]]": "`\\(a, b\\)`",
    "x = (1).real": "there is no 'real' to read",
    "x = [i.__class__ for i in [1]]": "there is no '__class__' to read",
    "x = [].__class__": "there is no '__class__' to read",
    "x = len.__self__": "a function is read where it is called only",
    "x = getattr('', 'x')": "a call",
    "x = type('')": "a call",
    "x = isinstance(1, 1)": "a call",
    "max = 1\nx = max(1, 2)": "a call",
    "def f():\n    return 1\nx = f": "'f' is a function, and nothing of a config is run",
    "def f(a=open('x')):\n    return 1": "a function",
    "def f():\n    exec('a')": "a function",
    "x = '{0.__class__}'.format(1)": "only whole values are put into text",
    "x = '{:>{}}'.format(1, 9)": "only whole values are put into text",
    "x = '{}'.format([[1]])": "only numbers and text are put into text",
    "x = ''.join([[1]])": "only numbers and text are put into text",
    "x = ''.join([1])": "fails with TypeError",
    "a, *b, c = [1]": "there must be 3 values",
    "a, b = *[1], *[2], *[3]": "there must be 2 values",
    "x = 'a'.zfill(3)": "a call",
    "x = [i async for i in [1]]": "only lists, dicts, text and ranges are gone through",
    "x = sum(i for [0][9] in [1])": "line 2: `sum.*fails with IndexError",
    "break": "line 2: `break` must stand in a loop",
    "if 1:\n    continue": "line 3: `continue` must stand in a loop",
    "x = dict(**['a'])": "fails with TypeError: 'list' object is not a mapping",
    "open('f')": "`open\\('f'\\)`: a call is not read",
}  # fmt: skip


@pytest.mark.parametrize("code", REFUSED)
def test_what_is_not_known_is_named(code, tmp_path):
    path = write(tmp_path, {"config.py": f"from torch.optim import AdamW\n{code}"})
    with pytest.raises(ValueError, match=REFUSED[code]):
        mmengine.read_config(path)


def test_only_what_may_have_changed_is_unread(tmp_path):
    """A branch that is known is read statement by statement; one that is not spoils what either side changes."""
    text = "from os import path\nlr = 0.1\nh = [1]\nk = [2]\nif path.exists('x'):\n    h += [1]\nelse:\n    m = 1\n"
    text += "if True:\n    k += [3]\n    h2 = open('x')\n    last = 4\ndef f():\n    return path.join(h)\nf()"
    found, unread = read_names(write(tmp_path, {"config.py": text}), only=["lr"])
    assert found == {"lr": 0.1, "k": [2, 3], "last": 4} and sorted(unread) == ["f", "h", "h2", "m"]


# Files that would take for ever, or all memory: by a name, from how large they are.
HOSTILE = {
    "doubled": lambda n: {"config.py": "a = [1]\n" + "a = [a, a]\n" * n},
    "doubled in a dict": lambda n: {"config.py": "a = dict()\n" + "a = dict(x=a, y=a)\n" * n},
    "doubled by append": lambda n: {"config.py": "a = [1]\n" + "a.append([*a])\n" * n},
    "doubled by copies": lambda n: {"config.py": "a = [1]\n" + "a = a + a\n" * n},
    "doubled text": lambda n: {"config.py": "a = 'xxxx'\n" + "a = a + a\n" * n},
    "text in text": lambda n: {"config.py": "a = 'x'\n" + "a = f'{a}{a}'\n" * n},
    "doubled in place": lambda n: {"config.py": "a = [1]\n" + "a += a\n" * n},
    "squared": lambda n: {"config.py": "a = 7\n" + "a = a * a\n" * n},
    "powers": lambda n: {"config.py": f"a = {n} ** {n} ** {n}"},
    "powers of powers": lambda n: {"config.py": "a = 10 ** 10 ** 10"},
    "a long text": lambda n: {"config.py": f"a = 'x' * {n} ** 9"},
    "a long list": lambda n: {"config.py": f"a = [0] * {n} ** 9"},
    "a long range": lambda n: {"config.py": f"a = list(range({n} ** 9))"},
    "a loop": lambda n: {"config.py": f"for i in range({n} ** 3):\n    a = [i] * 9"},
    "loops in loops": lambda n: {"config.py": "".join(
        f"{'    ' * i}for i{i} in range({n}):\n" for i in range(8)) + "    " * 8 + "a = 1"},
    "comprehensions": lambda n: {"config.py": "a = [1 " + " ".join(f"for i{i} in range({n})" for i in range(8)) + "]"},
    "a growing list": lambda n: {"config.py": f"a = [1]\nfor i in range({n * n}):\n    a.append(a.copy())"},
    "a list in itself": lambda n: {"config.py": "a = []\n" + "a.append(a)\n" * n},
    "deep": lambda n: {"config.py": "a = " + "[" * n * 40 + "]" * n * 40},
    "deep by a loop": lambda n: {"config.py": f"a = []\nfor i in range({n * n}):\n    a = [a]"},
    "deep signs": lambda n: {"config.py": "a = " + "-" * n * 400 + "1"},
    "deep sums": lambda n: {"config.py": "a = " + "1 + " * n * 400 + "1"},
    "many lines": lambda n: {"config.py": "a = 1\n" * (n * 4000)},
    "a large literal": lambda n: {"config.py": "a = [" + "1," * (n * 20_000) + "]"},
    "a large JSON": lambda n: {"config.json": '{"a": [' + "1," * (n * 20_000) + "1]}"},
    "a deep JSON": lambda n: {"config.json": '{"a": ' + "[" * n * 400 + "]" * n * 400 + "}"},
    "many bases": lambda n: {
        **{f"{i}.py": f"_base_ = ['{i + 1}.py', './{i + 1}.py']" for i in range(n)}, f"{n}.py": "", "config.py":
        "_base_ = '0.py'"},
    "a chain of bases": lambda n: {
        **{f"{i}.py": f"_base_ = '{i + 1}.py'" for i in range(n * 10)}, f"{n * 10}.py": "", "config.py":
        "_base_ = '0.py'"},
    "many references": lambda n: {"config.py": "a = '" + "{{$A:" * n * 1000 + "'"},
    "compared": lambda n: {"config.py": "a = [1]\nb = [1]\n" + "a = [a, a]\nb = [b, b]\n" * n + "c = a == b"},
    "shared and grown": lambda n: {"config.py":
        f"x = []\ny = [x] * {n * 100}\nfor i in range({n * 100}):\n    x.append(i)"},
    "widths": lambda n: {"config.py": f"a = '%{10 ** 9 + n}d' % 1"},
    "a loop without end": lambda n: {"config.py": "a = 1\nwhile a:\n    a += 1"},
    "a loop that grows": lambda n: {"config.py": "a = [1]\nwhile a:\n    a += a"},
    "replaced": lambda n: {"config.py": f"a = 'x' * {n * 1000}\n" + "a = a.replace('x', a)\n" * n},
    "joined": lambda n: {"config.py": f"a = 'x' * {n * 1000}\n" + "a = a.join(list(a))\n" * n},
    "formatted": lambda n: {"config.py": f"a = ('{{0}}' * {n * 1000}).format('x' * {n * 1000})"},
    "wide formats": lambda n: {"config.py": f"a = '{{:{10 ** 9 + n}}}'.format(1)"},
    "counted": lambda n: {"config.py": "a = [1]\nb = [1]\n" + "a = [a, a]\nb = [b, b]\n" * n + "c = [a].count(b)"},
    "joined dicts": lambda n: {"config.py": "a = {1: 1}\n" + "a = {0: a, 1: a} | a\n" * n},
    "slices": lambda n: {"config.py": f"a = [0] * 99999\nb = [a[i:] for i in range({n * 100})]"},
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_bounded(kind, tmp_path, monkeypatch):
    """Three hundred and more, in sizes from harmless to absurd: each is read or refused within its budget."""
    monkeypatch.setattr(budget, "STEPS", 20_000)
    monkeypatch.setattr(budget, "LETTERS", 200_000)
    monkeypatch.setattr(budget, "FILES", 60)
    for n in (3, 10, 25, 41, 73):
        path = write(tmp_path / str(n), HOSTILE[kind](n))
        for only in (None, ["optimizer"]):
            spent = budget.Budget(path)
            monkeypatch.setattr("gradchain.adapters.mmengine.reading.files.Budget", lambda _, spent=spent: spent)
            try:
                read_names(path, only)
            except (ValueError, TypeError) as error:
                assert str(error).startswith("mmengine.read_config: ")
            assert spent.steps >= -1 and spent.letters >= -1 and spent.files >= -1


def test_the_largest_are_refused_with_the_real_budget(tmp_path):
    """Sixty doublings, fifty megabytes, powers of powers: the memory of the process does not grow by them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind, n in {"doubled": 60, "powers of powers": 1, "loops in loops": 99}.items():
        path = write(tmp_path / kind.replace(" ", ""), HOSTILE[kind](n))
        with pytest.raises(ValueError, match="too large to be meant"):
            mmengine.read_config(path)
    large = tmp_path / "large.py"
    with large.open("wb") as file:
        for _ in range(50):
            file.write(b"a = [" + b"1, " * 349_000 + b"]\n")
    with pytest.raises(ValueError, match="too large to be meant"):
        mmengine.read_config(large)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kilobytes


def test_looking_for_what_may_have_changed_is_bounded(tmp_path):
    """For each statement that is not read, all that was read before it is looked through."""
    path = write(tmp_path, {"config.py": "x = [" + "[], " * 2000 + "]\n" + "f()\n" * 1000})
    with pytest.raises(ValueError, match="too large to be meant"):
        mmengine.read_config(path, only=())


def test_only_files_are_opened(tmp_path):
    """A pipe would wait for a writer, and a device never ends: also behind a link, and as a base."""
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "zero.py").symlink_to("/dev/zero")
    (tmp_path / "folder.py").mkdir()
    for name, way in itertools.product(("pipe", "zero", "folder"), ("itself", "base", "import")):
        path = tmp_path / f"{name}.py"
        if way == "base":
            path = write(tmp_path, {"config.py": f"_base_ = '{name}.py'"})
        if way == "import":
            path = write(tmp_path, {"config.py": f"with read_base():\n    from .{name} import *"})
        with pytest.raises(ValueError, match="cannot be read"):
            mmengine.read_config(path)
    for name in ("/dev/zero", "/dev/stdin"):
        with pytest.raises(ValueError, match=r"it must be a \.py or \.json file"):
            mmengine.read_config(write(tmp_path, {"config.py": f"_base_ = {name!r}"}))
