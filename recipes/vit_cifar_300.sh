#!/usr/bin/env bash
# The preset `cifar`, 300 epochs with strong augmentation, three seeds; for a GPU.
exec "$(dirname "$0")/vit_row.sh" cifar_300 --preset cifar --epochs 300 --val_interval 10 --compile --cutmix 1.0 --mixup 0.8 --drop_path 0.1 --trivial_augment --erase_prob 0.25 --ema_decay 0.9995
