"""Print how many steps of a head of tokcom/calm.py take as many FLOPs as the training of another run, stage one not counted.

python -m recipes.tokcom_steps RUN/report.json --vae_checkpoint VAE/best_vae.pt --data_path RUN/data --output_dir HEAD ...    # of tokcom.calm
"""

import json
from pathlib import Path

from corpus.chunks import open_chunks
from kit import device, errors
from tokcom import calm
from tokcom.inference import load_checkpoint


def main() -> None:
    parser = calm.parser()
    parser.add_argument("report", type=Path, help="report.json of the other run")
    args = parser.parse_args()
    runtime = device.start(args.device, args.seed, args.precision)
    vae, _, vae_args, _ = load_checkpoint(args.vae_checkpoint)
    model = calm.NextVector(calm.config_of(args, vae_args)).to(runtime.device)
    train, _, _ = open_chunks(args.data_path, args.data_path, None)
    some = [train[i] for i in range(min(args.batch_size, len(train)))]
    per_token = calm.training_flops(model, some, runtime, vae.requires_grad_(False)) / sum(map(len, some))
    a_step = per_token * args.batch_size * train.lengths.mean()
    print(round(json.loads(args.report.read_text(encoding="utf-8"))["training_flops"] / a_step))


if __name__ == "__main__":
    errors.run(main)
