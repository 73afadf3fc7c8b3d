"""What is logged -> its name, in TensorBoard, in the record and for callbacks that monitor it.

docs/runs.md says what each one is.
"""

TRAIN_LOSS = "train/loss"
VAL_LOSS = "val/loss"
VAL_BITS_PER_BYTE = "val/bits_per_byte"
LEARNING_RATE = "optim/lr"
GRAD_NORM = "optim/grad_norm"
SECONDS = "speed/seconds"
TOKENS_PER_SECOND = "speed/tokens_per_second"
MFU = "speed/mfu"
TOKENS = "data/tokens"
EPOCH = "data/epoch"
