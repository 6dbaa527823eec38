# Settings of scripts/train_cascade.sh for the demo: 64×64 pixels, about 20 minutes on two cores.
IMAGE_SIZE=64
NUM_IMAGES=9000
AUTOENCODER="--max-step 6000 --batch-size 8 --checkpoint-step 3000 --log-step 200 --lr-schedule cosine --ema-decay 0"
FEATURE_MAPS="--batch-size 64 --flip"
CODEBOOK="--max-step 600 --batch-size 64"
PRUNE="--batch-size 64 --prune-threshold 10"
DECODER="--max-step 2000 --batch-size 8 --checkpoint-step 1000 --log-step 200 --lr-schedule cosine --ema-decay 0"
TRANSFORMER_0="--max-step 900 --batch-size 64 --checkpoint-step 100 --lr-schedule cosine --ema-decay 0.98 --warmup-step 50"
TRANSFORMER_1="--max-step 1000 --batch-size 16 --checkpoint-step 200 --lr-schedule cosine --ema-decay 0.98 --warmup-step 50"
TRANSFORMER_2="--max-step 3600 --batch-size 8 --checkpoint-step 600 --lr-schedule cosine --ema-decay 0.98 --warmup-step 50"
GENERATE="--num-images 25 --seed 0 --animate"
