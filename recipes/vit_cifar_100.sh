#!/usr/bin/env bash
# The preset `cifar`, 100 epochs with stronger augmentation, three seeds; for a GPU.
exec "$(dirname "$0")/vit_row.sh" cifar_100 --preset cifar --epochs 100 --val_interval 5 --compile --cutmix 1.0 --mixup 0.8 --drop_path 0.1 --trivial_augment
