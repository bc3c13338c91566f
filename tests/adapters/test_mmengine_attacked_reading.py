"""Config files as people write them: what MMEngine's own Config makes of them, or a refusal with file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from later import later

from gradchain.adapters import mmengine

config = later("mmengine.config")
BASE = """
model = dict(type='A', backbone=dict(type='R', depth=50, stages=[1, 2, 3]))
lr = 0.1
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, betas=(0.9, 0.99)), clip_grad=None)
milestones = [8, 11]
"""
READ = {
    "rates by depth": "keys = {}\nfor i in range(3):\n    keys[f'layers.{i}'] = dict(lr_mult=0.9 ** (3 - i))",
    "custom keys of two loops": "keys = dict(a=1)\nkeys.update({f'x{i}.{n}': dict(decay_mult=0.) for i in range(2) "
    "for n in ('norm', 'bias')})",
    "nested conditions": "a, b = 1, 0\nif a:\n    if not a:\n        b = 2\n    else:\n        b = [3]\nelif a == 2:\n"
    "    b = 4",
    "stars": "a = [1, 2]\nb = [*a, 3]\nc = dict(**dict(x=1), y=2)\nd = {**c, 'z': 3}\nf, (g, *h) = 1, (2, 3, 4)",
    "texts": "a = '{}-{:03d}'.format('a', 7)\nb = '%s_%d' % ('x', 3)\nw = 5\nc = f'{3.14159:.2f}{\"q\"!r}{3:>{w}}'\n"
    "d = '/'.join('a.b.c'.split('.'))\ne = 'X'.lower().replace('x', 'y')",
    "parts": "a = list(range(10))\nb = a[2:8:2]\nc = a[::-1]\nd = 'abc'[-1]\na[-1] = 9\na[0:2] = [7]",
    "numbers": "a = int(1e3 / 3)\nb = round(2.675, 2)\nc = max(1, 7 // 2, 3)\nd = abs(-3)\ne = float('0.5')\n"
    "f = bool([])\ng = 1_000\nh = 10**-3\ni = divmod(7, 2)\nj = int('0x10', 16)\nk = min([], default=3)",
    "functions of lists": "a = sum([[1], [2, 3]], [])\nb = sum(x for x in [1, 2])\nc = sorted({'x': 1, 'a': 2})\n"
    "d = [(i, x, y) for i, (x, y) in enumerate(zip('ab', [1, 2]))]\ne = any(x > 2 for x in [1, 3])\nf = all([])",
    "changes in place": "a = [1, 2]\na[0] += 5\nb = dict(x=[1])\nb['x'] += [2]\nb['x'].append(3)\nc = d = [1]\n"
    "c.append(2)\nb.setdefault('y', []).append(2)\ne = b.pop('x')\nf = b.get('z', 5)\ng = list(b.items())",
    "one list by two names": "a = dict(x=[1])\nb = a.copy()\nb['y'] = 2\na['x'].append(3)",
    "loops": "n = 1\nwhile n < 100:\n    n *= 2\nxs = []\nfor i in range(5):\n    if i == 2: continue\n"
    "    if i == 4: break\n    xs.append(i)\nelse:\n    z = 1\nfor k in ['a', 'b']:\n    pass",
    "choices": "a = 1 if 0 else 2 if 0 else 3\nb = None or 'x'\nc = 1 < 2 < 3\nd = 'a' in 'abc' and not None is None",
    "a comprehension's own names": "x = 5\na = [x for x in range(3)]\nb = x\nc = [[i * j for j in range(i) if j % 2] "
    "for i in range(5) if i]",
    "names that a loop leaves": "if True:\n    key, value = 'a', 1\nd = {key: value}\ndel value",
    "dicts": "a = dict(x=1) | dict(y=2)\na |= {'z': 3}\nb = {1: 'x', (1, 2): 'y', None: 3}\nc = dict([('a', 1)])\n"
    "d = dict({'q': 2}, r=3)",
    "functions that nobody calls": "def f(x):\n    return 2 * x\na: int = 1\nassert a > 0, 'no'\n_x = 3\nz = _x",
    "a base's attributes": "_base_ = './base.py'\nx = _base_.model.backbone.depth * 2\n"
    "y = [m // 2 for m in _base_.milestones]\n"
    "w = {k: v for k, v in _base_.optim_wrapper.optimizer.items() if k != 'lr'}\n"
    "v = _base_.get('lr', 3)\nu = _base_['lr']",
    "over a base": "_base_ = ['./base.py']\nmodel = dict(backbone=dict(depth=101, stages=[9]))\n"
    "optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-3))\nq = dict(p=[dict(x=1), dict(x=2)])",
    "a base changed": "_base_ = './base.py'\nm = _base_.model\nm.backbone.depth = 18\n_base_.milestones.append(20)",
    "references": "_base_ = './base.py'\ny = {{_base_.lr}}\nz = dict(q={{_base_.model.backbone.stages}})\n"
    "a = '{{ fileBasenameNoExtension }}'",
}


@pytest.mark.parametrize("name", READ)
def test_idioms_are_read_as_mmengine_reads_them(name: str, tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text(BASE)
    (path := tmp_path / "child.py").write_text(READ[name])
    assert repr(mmengine.read_config(path)) == repr(config.Config.fromfile(path).to_dict())


REFUSED = {
    "a walrus": ("if (n := 3) > 2:\n    lr = n", 1, "(n := 3)"),
    "a set": ("a = 1\nb = sorted({3, a})", 2, "{3, a}"),
    "a try": ("try:\n    a = 1\nexcept Exception:\n    a = 2", 1, "try: a = 1"),
    "a function that is called": ("def f(x):\n    return 2 * x\n\n\na = f(2)", 5, "f(2)"),
    "a module's function": ("import os\n\na = os.path.join('x', 'y')", 3, "os.path.join('x', 'y')"),
    "a shift": ("a = 1 << 4", 1, "1 << 4"),
    "an attribute of a dict of its own": ("a = dict(x=1)\na.x = 2", 2, "a.x"),
    "the type of": ("a = type('x')", 1, "type('x')"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_has_its_line(name: str, tmp_path: Path) -> None:
    text, line, piece = REFUSED[name]
    (path := tmp_path / "child.py").write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"mmengine.read_config: {path}, line {line}: `{piece}")):
        mmengine.read_config(path)
    # what it does not touch is read where the rest does not matter
    path.write_text(f"lr = 0.5\n{text}\nmomentum = 0.9")
    assert mmengine.read_config(path, only=("lr_config",)).get("momentum") == 0.9
