# Settings of scripts/train_cascade.sh for 128×128 pixels on a GPU with 24 GB: an evening, as docs/scaling.md predicts.
IMAGE_SIZE=128
AUTOENCODER="--max-step 40000 --batch-size 32 --checkpoint-step 10000 --lr-schedule cosine --ema-decay 0 --compile"
FEATURE_MAPS="--batch-size 64 --flip"
CODEBOOK="--max-step 2000 --batch-size 64"
PRUNE="--batch-size 64 --prune-threshold 10"
DECODER="--max-step 15000 --batch-size 32 --checkpoint-step 5000 --lr-schedule cosine --ema-decay 0 --compile"
TRANSFORMER_0="--max-step 10000 --batch-size 128 --checkpoint-step 500 --keep-checkpoint 2 --lr-schedule cosine --ema-decay 0.99 --warmup-step 200 --compile"
TRANSFORMER_1="--max-step 20000 --batch-size 64 --checkpoint-step 1000 --keep-checkpoint 2 --lr-schedule cosine --ema-decay 0.99 --warmup-step 200 --compile"
TRANSFORMER_2="--max-step 40000 --batch-size 32 --checkpoint-step 2000 --keep-checkpoint 2 --lr-schedule cosine --ema-decay 0.99 --warmup-step 500 --compile"
GENERATE="--num-images 25 --seed 0 --animate"
