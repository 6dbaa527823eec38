# Settings of scripts/train_cascade.sh for a complete pass in two minutes on two cores.
IMAGE_SIZE=32
NUM_IMAGES=1000
AUTOENCODER="--max-step 600 --batch-size 16 --checkpoint-step 300 --lr-schedule cosine --warmup-step 20"
FEATURE_MAPS="--batch-size 64 --flip"
CODEBOOK="--max-epoch 6 --batch-size 32"
PRUNE="--batch-size 64 --prune-threshold 2"
TRANSFORMER_0="--max-step 200 --batch-size 32 --lr-schedule cosine --warmup-step 20"
TRANSFORMER_1="--max-step 200 --batch-size 32 --lr-schedule cosine --warmup-step 20"
TRANSFORMER_2="--max-step 200 --batch-size 32 --lr-schedule cosine --warmup-step 20"
GENERATE="--num-images 25 --seed 0"
