"""Configs as mmclassification 0.x and mmpretrain 1.x store them in a checkpoint, and the pixels that they state."""

from __future__ import annotations

from vit_ipu.weights.mmpretrain_config import stated_in_meta

HALF, IMAGENET = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SHAPE = {"image_size": 224, "width": 64}
ARCH = "arch=dict(embed_dims=64, num_layers=1, num_heads=4, feedforward_channels=64)"
STD = "std=[127.5, 127.5, 127.5]"
RESIZED = ("eval_crop", "eval_resize")
DEEP = 100_000

OLD = """img_norm_cfg = dict(
    mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch='b',
        img_size=224,
        init_cfg=dict(
            type='Pretrained',
            checkpoint=
            'https://localhost/vit-base-p16.pth',
            prefix='backbone')),
    neck=None,
    head=dict(type='VisionTransformerClsHead', num_classes=5))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', size=224, backend='pillow', interpolation='bicubic'),
    dict(
        type='Normalize',
        mean=[1.0, 2.0, 3.0],
        std=[4.0, 5.0, 6.0],
        to_rgb=True)
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', size=(999, -1))
]
data = dict(
    samples_per_gpu=17,
    train=dict(type='ImageNet', pipeline=[dict(type='LoadImageFromFile')]),
    test=dict(
        type='ImageNet',
        data_prefix='data/imagenet/val',
        pipeline=[
            dict(type='LoadImageFromFile'),
            RESIZE,
            dict(type='CenterCrop', crop_size=224),
            dict(
                type='Normalize',
                mean=[127.5, 127.5, 127.5],
                std=[127.5, 127.5, 127.5],
                to_rgb=True),
            dict(type='ImageToTensor', keys=['img']),
            dict(type='ToHalf', keys=['img']),
            dict(type='Collect', keys=['img'])
        ]))
optimizer = dict(
    type='SGD',
    lr=0.08,
    weight_decay=1e-05,
    paramwise_cfg=dict(
        custom_keys=dict({
            '.cls_token': dict(decay_mult=0.0),
            '.pos_embed': dict(decay_mult=0.0)
        })))
opencv_num_threads = 0
work_dir = './work_dirs/vit'
"""
"""Of mmclassification 0.x, as yapf lays it out; RESIZE is the step to fill in."""
SHORT_SIDE = "dict(type='Resize', size=(224, -1), backend='pillow')"

NEW = """auto_scale_lr = dict(base_batch_size=4096)
data_preprocessor = dict(
    mean=[
        123.675,
        116.28,
        103.53,
    ],
    num_classes=5,
    std=[
        58.395,
        57.12,
        57.375,
    ],
    to_rgb=True)
launcher = 'none'
model = dict(
    backbone=dict(
        arch='b', drop_rate=0.1, patch_size=16, type='VisionTransformer'),
    head=dict(num_classes=5, type='VisionTransformerClsHead'),
    type='ImageClassifier')
test_dataloader = dict(
    batch_size=64,
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        ann_file='meta/val.txt',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(
                backend='pillow',
                edge='short',
                interpolation='bicubic',
                scale=256,
                type='ResizeEdge'),
            dict(crop_size=224, type='CenterCrop'),
            dict(type='PackInputs'),
        ],
        type='ImageNet'),
    sampler=dict(shuffle=False, type='DefaultSampler'))
test_pipeline = [
    dict(type='LoadImageFromFile'),
]
"""
"""Of mmpretrain 1.x."""


def old(resize=SHORT_SIDE, **changes):
    return changed(OLD.replace("RESIZE", resize), changes)


def changed(text, changes):
    for before, after in changes.items():
        assert text.count(before) >= 1
        text = text.replace(before, after)
    return text


def stated(text, key="config", **shape):
    return stated_in_meta({key: text}, {**SHAPE, **shape})


def pixels(mean, std, interpolation, crop, resize):
    return {
        "mean": mean,
        "std": std,
        "interpolation": interpolation,
        "eval_crop": crop,
        "eval_resize": resize,
    }


REFERENCE = pixels(HALF, HALF, "bilinear", "center", None)
"""mmclassification's fine-tuning on IPUs: vit-base-p16_ft-4xb544-ipu_in1k.py."""
USUAL = pixels(IMAGENET, IMAGENET_STD, "bicubic", "center", 256)
