"""Where each recipe's optimization part stands in its original: repository, commit, files and lines, and their count.

`python tests/gallery/page.py --count FOLDER` counts anew, in FOLDER/owner+name, a clone that has the commit. Counted
are lines of code: no blank ones, comments, docstrings. What counts as the optimization part: groups, optimizer,
schedules, scaler, clip, accumulation, averages of weights, in the script's own files. A library's optimizers and
schedulers, ours or theirs, are not counted, nor are imports, arguments of the command line and numbers of configs.
"""

from typing import NamedTuple


class Original(NamedTuple):
    repository: str
    commit: str
    files: dict[str, str]  # path: ranges of lines
    lines: int
    by_hand: bool = False  # read at that commit and counted by eye: its snapshot is too large to be cloned here


ORIGINALS = {
    "nanogpt": Original("karpathy/nanoGPT", "3adf61e154c3fe3fca428ad6bc3818b27a3b8291", {
        "train.py": "196,199,231-242,258-260,292,298,301,305-314", "model.py": "263-287",
    }, 43),
    "modded_nanogpt": Original("KellerJordan/modded-nanogpt", "f411b3d346aa52d3504324ca93c230fd84c6c07f", {
        "train_gpt.py": "353-950,1968-1976,1995-2007,2026-2049,2104-2107,2131-2168",
    }, 444),
    "mae": Original("facebookresearch/mae", "efb2a8062c206524e35e47d04501ed4f544c0ae8", {
        "util/lr_decay.py": "15-76", "util/lr_sched.py": "9-21", "main_finetune.py": "269-270,283-288",
        "engine_finetune.py": "38,46-47,65-70", "util/misc.py": "251-271",
    }, 88),
    "dino": Original("facebookresearch/dino", "7c446df5b9f45747937fb0d72314eb9f7b66930a", {
        "utils.py": "132-149,187-198,632-643", "main_dino.py": "225-235,238-251,308-312,327-344,347-350",
    }, 87),
    "convnext": Original("facebookresearch/ConvNeXt", "048efcea897d999aed302f2639b6270aedf8d4c8", {
        "optim_factory.py": "32-125", "main.py": "311-318,335-341,350-355,358-366", "engine.py": "30,33-43,67-75",
        "utils.py": "384-405,428-445",
    }, 157),
    "deit": Original("facebookresearch/deit", "7e160fe43f0252d17191b71cbb5826254114ea5b", {
        "main.py": "334-341,349-355,432", "engine.py": "63-72",
    }, 21),
    "timm": Original("huggingface/pytorch-image-models", "aa4b5850c1543fa488abf260f18390eda46cf85d", {
        "train.py": "972-976,997-1003,1079-1084,1199-1201,1266-1268,1271,1274,1278-1281,1299-1330,1391-1393,1438-1439",
    }, 63),
    "detr": Original("facebookresearch/detr", "29901c51d7fe8712168b8d0d64351170bc0f83e0", {
        "main.py": "131-140,199", "engine.py": "52-56",
    }, 16),
    "yolov5": Original("ultralytics/yolov5", "5081342f04fb287fc2e5f2b5a4e06752b7937b1c", {
        "train.py": "234-248,251,338-344,375,383-390,410,413-421,438", "utils/torch_utils.py": "257-285,343-369",
    }, 73),
    "detectron2": Original("facebookresearch/detectron2", "02b5c4e295e990042a714712c21dc79b731e8833", {
        "detectron2/solver/build.py": "119-139,142-235,238-280,283-323",
        "detectron2/solver/lr_scheduler.py": "22-58,61-138", "detectron2/engine/train_loop.py": "318-319,336",
    }, 192),
    "stylegan2_ada": Original("NVlabs/stylegan2-ada-pytorch", "d72cc7d041b42ec8e806021a205ed9349f87c6a4", {
        "training/training_loop.py": "152,196-208,270-272,277-278,283,287-292,297-305",
    }, 35),
    "diffusion": Original("lucidrains/denoising-diffusion-pytorch", "faed4db28e724735323fa91c70aa9b28a6e1cbac", {
        "denoising_diffusion_pytorch/denoising_diffusion_pytorch.py": "962,966-968,1062,1067,1070,1075-1078,1083-1084",
    }, 12),
    "ppo": Original("vwxyzjn/cleanrl", "fe8d8a03c41a7ef5b523e2e354bd01c363e786bb", {
        "cleanrl/ppo.py": "168,187-190,244,287-290",
    }, 10),
    "sac": Original("vwxyzjn/cleanrl", "fe8d8a03c41a7ef5b523e2e354bd01c363e786bb", {
        "cleanrl/sac_continuous_action.py": "195-200,205,207,271-278,285-287,294-296,300-304",
    }, 26),
    "byol": Original("google-deepmind/deepmind-research", "4822a45504cb05042841a358f070bba35c6fbc24", {
        "byol/utils/optimizers.py": "all", "byol/byol_experiment.py": "`_optimizer`, `_update_fn`",
        "byol/utils/schedules.py (at 8457046b)": "all",
    }, 129, by_hand=True),
    "clip": Original("mlfoundations/open_clip", "89fb801f1e6087880e951fc8354b8a2077b79c6d", {
        "src/open_clip_train/scheduler.py": "6-15,38-39,74-85",
        "src/open_clip_train/legacy_main.py": "332-337,346-352,421-422",
        "src/open_clip_train/train.py": "145-149,201-218",
    }, 56),
    "lora_plus": Original("nikhil-ghosh-berkeley/loraplus", "a0c44bfec0eff97b9574469366bc6b0ccc28838d", {
        "lora_plus.py": "35-99,106-132",
    }, 61),
    "pinn": Original("PredictiveIntelligenceLab/jaxpi", "e85b6947b0795a1bf68169ba6d378be3c713a6d9", {
        "jaxpi/models.py": "24-41,60-78,88,132-146,158-168,170-174",
    }, 41),
    "gaussian_splatting": Original("graphdeco-inria/gaussian-splatting", "1152adc9d37d1075eae5350879dc789918e719bf", {
        "scene/gaussian_model.py": "`training_setup`, `update_learning_rate`, `reset_opacity`,"
        " `replace_tensor_to_optimizer`, `_prune_optimizer`, `prune_points`,"
        " `cat_tensors_to_optimizer`, `densification_postfix`",
    }, 105, by_hand=True),
    "wgan_gp": Original("caogang/wgan-gp", "ae47a185ed2e938c39cf3eb2f06b32dc1b6a2064", {
        "gan_mnist.py": "162-163,178-179,181,188,194,205,209,213,218-220,229,231",
    }, 15),
    "swa": Original("timgaripov/swa", "411b2fcad59bec60c6c9eb1eb19ab906540e5ea2", {
        "train.py": "85-89,94-112,146-147,154-158", "utils.py": "5-8,35-37,74-130",
    }, 72),
    "sam": Original("davda54/sam", "3c3afdbd71cff2462ec91c734b3d1170bd0f3707", {
        "sam.py": "4-63", "example/train.py": "39-41,51,54-55,58,60,65", "example/utility/step_lr.py": "1-21",
        "example/utility/bypass_bn.py": "6-19",
    }, 86),
    "schedule_free": Original("facebookresearch/schedule_free", "70785b53e778d0e872c0bbb75ff4ee54ee10c291", {
        "examples/mnist/main.py": "39,42,45-46,57,132",
    }, 6),
    "simsiam": Original("facebookresearch/simsiam", "a7bc1772896d0dad0806c51f0bb6f3b16d290468", {
        "main_simsiam.py": "157,193-201,257,300-302,359-367",
    }, 20),
    "textual_inversion": Original("huggingface/diffusers", "1eeddd0bff13a725b5f575d8d2b1bc26cfcafb14", {
        "examples/textual_inversion/textual_inversion.py": "optimizer, scheduler and the loop's lines of `main`",
    }, 30, by_hand=True),
}  # fmt: skip
