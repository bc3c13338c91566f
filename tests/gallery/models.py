"""For each recipe whose groups are by name: a small model with the original's names."""

import torch
from toys import model_of

V, M = (4,), (4, 4)


def norm():
    return torch.nn.LayerNorm(4)


def nanogpt():
    return model_of(transformer__wte__weight=M, transformer__h0__ln_1=norm(), transformer__h0__attn__c_attn__weight=M)


def modded_nanogpt():
    return model_of(
        qk_bank=M, vo_bank=M, mlp_bank=M, lm_head__weight=M, bigram_embed__weight=M, scalars=V, smear_gate__weight=M,
        ve_gate_bank=M,
    )  # fmt: skip


def mae():
    blocks = {f"blocks__{i}__attn__qkv__weight": M for i in range(12)}
    blocks |= {f"blocks__{i}__{part}": V for i in range(12) for part in ("norm1__weight", "mlp__fc2__bias")}
    return model_of(
        cls_token=(1, 1, 4), pos_embed=(1, 2, 4), patch_embed__proj=torch.nn.Conv2d(1, 4, 1), fc_norm__weight=V,
        head=torch.nn.Linear(4, 4), **blocks,
    )  # fmt: skip


def convnext():
    return model_of(
        downsample_layers=torch.nn.ModuleList(
            torch.nn.ModuleList([torch.nn.Conv2d(1, 4, 1), torch.nn.Conv2d(1, 4, 1)]) for _ in range(4)
        ),
        stages__0__0__gamma=V, stages__1__2__dwconv__weight=M, stages__2__0__pwconv1__weight=M,
        stages__2__26__pwconv1__weight=M, stages__2__26__norm__weight=V, stages__3__2__pwconv2__weight=M, norm=norm(),
        head=torch.nn.Linear(4, 4),
    )  # fmt: skip


def deit():
    return model_of(cls_token=(1, 1, 4), pos_embed=(1, 2, 4), blocks__0__norm1=norm(), head=torch.nn.Linear(4, 4))


def timm():
    return model_of(conv1__weight=M, bn1=torch.nn.BatchNorm1d(4), fc=torch.nn.Linear(4, 4))


def detr():
    return model_of(backbone__0__body__conv1__weight=M, transformer__weight=M, class_embed=torch.nn.Linear(4, 4))


def yolov5():
    return model_of(conv__weight=M, bn=torch.nn.BatchNorm1d(4), head=torch.nn.Linear(4, 4))


def detectron2():
    return model_of(backbone__conv1__weight=M, backbone__norm=torch.nn.BatchNorm1d(4), head=torch.nn.Linear(4, 4))


def clip():
    return model_of(logit_scale=(), visual__ln_pre=norm(), visual__proj=M, transformer__mlp=torch.nn.Linear(4, 4))


def lora_plus():
    return model_of(
        q__lora_A__weight=M, q__lora_B__weight=M, word__lora_embedding_A=M, norm=norm(), score=torch.nn.Linear(4, 4)
    )


def simsiam():
    return model_of(encoder=torch.nn.Linear(4, 4), predictor=torch.nn.Linear(4, 4))


def byol():
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))


def dino():
    net = torch.nn.Sequential()
    net.add_module("backbone", torch.nn.Linear(4, 4))
    net.add_module("norm", norm())
    net.add_module("last_layer", torch.nn.Linear(4, 4, bias=False))
    return net
