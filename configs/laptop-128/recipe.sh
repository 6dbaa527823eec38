# Settings of scripts/train_cascade.sh for 128×128 pixels on two CPU cores, about 45 minutes.
IMAGE_SIZE=128
NUM_IMAGES=9000
AUTOENCODER="--max-step 6000 --batch-size 4 --checkpoint-step 3000 --log-step 200 --lr-schedule cosine --ema-decay 0"
FEATURE_MAPS="--batch-size 32 --flip"
CODEBOOK="--max-step 600 --batch-size 32"
PRUNE="--batch-size 32 --prune-threshold 10"
DECODER="--max-step 2000 --batch-size 4 --checkpoint-step 1000 --log-step 200 --lr-schedule cosine --ema-decay 0"
TRANSFORMER_0="--max-step 1200 --batch-size 32 --checkpoint-step 200 --lr-schedule cosine --ema-decay 0.98 --warmup-step 50"
TRANSFORMER_1="--max-step 1600 --batch-size 8 --checkpoint-step 400 --lr-schedule cosine --ema-decay 0.98 --warmup-step 50"
TRANSFORMER_2="--max-step 4800 --batch-size 4 --checkpoint-step 1200 --lr-schedule cosine --ema-decay 0.98 --warmup-step 50"
GENERATE="--num-images 25 --seed 0 --animate"
