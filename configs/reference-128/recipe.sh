# The sizes of an old example for 128×128 pixels on a GPU. Nobody has trained it; for a new training use gpu-128.
IMAGE_SIZE=128
AUTOENCODER="--max-step 200000 --batch-size 8 --checkpoint-step 10000 --lr-schedule cosine"
FEATURE_MAPS="--batch-size 32 --flip"
CODEBOOK="--max-epoch 5 --batch-size 32"
PRUNE="--batch-size 32 --prune-threshold 10"
DECODER="--max-step 40000 --batch-size 8 --checkpoint-step 10000 --lr-schedule cosine"
TRANSFORMER_0="--checkpoint-step 20000 --max-step 100000 --batch-size 64 --warmup-step 1000 --lr-schedule cosine"
TRANSFORMER_1="--checkpoint-step 20000 --max-step 200000 --batch-size 32 --warmup-step 1000 --lr-schedule cosine"
TRANSFORMER_2="--checkpoint-step 20000 --max-step 300000 --batch-size 8 --warmup-step 1000 --lr-schedule cosine"
GENERATE="--num-images 25 --seed 0 --animate"
