# Settings of scripts/train_cascade.sh for a complete pass in a minute and a half on two cores.
IMAGE_SIZE=32
NUM_IMAGES=1000
AUTOENCODER="--max-step 1500 --batch-size 8 --checkpoint-step 500 --lr-schedule cosine --warmup-step 20 --ema-decay 0"
FEATURE_MAPS="--batch-size 64 --flip"
CODEBOOK="--max-epoch 6 --batch-size 32"
PRUNE="--batch-size 64 --prune-threshold 2"
DECODER="--max-step 300 --batch-size 8 --lr-schedule cosine --warmup-step 20 --ema-decay 0"
TRANSFORMER_0="--max-step 500 --batch-size 16 --lr-schedule cosine --warmup-step 20 --ema-decay 0"
TRANSFORMER_1="--max-step 500 --batch-size 16 --lr-schedule cosine --warmup-step 20 --ema-decay 0"
TRANSFORMER_2="--max-step 500 --batch-size 16 --lr-schedule cosine --warmup-step 20 --ema-decay 0"
GENERATE="--num-images 25 --seed 0 --animate"
