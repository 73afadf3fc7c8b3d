"""Every number that a verdict depends on: when a run's figure is too large, too small or too early.

Losses are in nats per token; a row is one logged training loss. The values were fitted on tiny
runs with known faults (benchmarks/verdicts.py) and tested on others.
"""

ROWS = 20  # a curve with fewer rows cannot be told from noise, so it is never a fault

# The loss before step 1
OFF_START = 0.5  # the first loss may differ from ln V by this many nats (GPT-2's: 0.1 above)

# The first updates
HUMP = 0.3  # an early loss this many nats above its start or its best so far is a hump
HUMP_SHARE = 0.1  # a rise above the best so far counts as a hump in this first share of the rows
EARLY = 0.25  # warmup explains only what happens in this first share of the rows
NO_WARMUP = 0.5  # warmup is missing if the first logged rate has this share of the peak rate
HIGHEST_RATE = {"Muon": 1.0, "Adam": 0.5}  # no warmup makes these learning rates usable

# Jumps and rises
ROWS_BEFORE = 5  # a jump starts from the median of this many rows
JUMP = 0.4  # a jump is at least this many nats high
JUMP_NOISE = 6.0  # and at least this many standard deviations of the row noise
RECOVERED = 0.15  # a jump is over when the loss is within this many nats of the level before it
ROWS_AFTER = 3  # a jump needs this many rows after it before it counts as not recovered
RISE = 0.2  # the median loss at the end may exceed the best median by this many nats
RISE_NOISE = 3.0  # or by this many standard deviations of the row noise, if that is more
PEAK = 0.04  # a validation is a peak if it is this many nats above both neighbours
PEAKS = 0.08  # the peaks may add up to this share of the total fall (healthy runs have none)

# Levels
UNMOVED = 0.06  # the loss must fall by this share of its start
UNMOVED_UNKNOWN = 0.02  # without a known vocabulary, by this share
UNTRAINED_NOISE = 0.01  # an untrained model finds all batches as hard, within this share of a loss
NEAR_UNIGRAM = 0.05  # shuffled labels end within this many nats of the unigram loss
UP_TO_UNIGRAM = 0.15  # a loss above (unigram - this many nats) shows little more than frequencies
FAST = 0.6  # a model that learns covers this share of the way to the unigram loss by mid-run
FLAT = 0.1  # a curve has stopped if its second half brings less than this share of the fall
STEPS_FLAT = 200  # GPT-2's initialisation can stay at the unigram loss for 100 steps
ABOVE_BIGRAM = 0.1  # a large enough model ends at most this many nats above the bigram loss
INFORMATIVE = 0.3  # token order is informative if bigrams are this many nats below unigrams
ADAM_RATE = 0.05  # a higher peak rate explains why Adam stays at the unigram loss
PLATEAU = 0.01  # the last third of a plateau brings less than this share of the total fall
TOO_SLOW = 0.2  # a run is too slow if its last third brings more than this share

# Training loss beside validation loss
TURN = 0.05  # overfitting: the last two validations are this many nats above the best
ONE_PASS = 1.0  # text that was read less often cannot be overfitted
WORSE = 0.1  # every validation is worse than the untrained model by this many nats
FEW_WORSE = 0.3  # or by this many, where there is only one
VALIDATIONS = 4  # a turn needs at least this many validations
GAP = 0.5  # a gap between validation and training is noted above this many nats

# Passes over the text
LATE = 3  # a log whose first step is more than so many rows after step 0 begins late
ROWS_BESIDE = 12  # rows before and after the begin of a pass whose lines are compared
REREAD = 0.05  # where a pass begins, the loss falls at once by this many nats

# The data
SHARED = 0.1  # share of validation windows found in the training text (clean corpora: 0.0001)
REPEATED = 0.2  # share of training windows found there twice (clean corpora: 0.0003)
COPIED_TOKENS = 32  # a copied span has at least this many tokens
COPIED_BYTES = 120  # and at least this many bytes: shorter spans repeat by chance
BY_HEART = 0.1  # a training loss below this many nats means that the text was memorised
FOREIGN = 1.0  # if the validation loss is more than this many nats above BY_HEART
TOKENS_PER_PARAMETER = 20.0  # compute-optimal (Hoffmann et al. 2022)
MANY_TOKENS = 100.0  # more tokens per parameter: overtrained (five times compute-optimal)

# What the batches hold and what steps do, as far as it was logged
FOLLOWING = 0.9  # share of targets that are the token after their input (sound: all)
SHIFTED = 0.1  # another token than the next is predicted better by so many nats
OTHER_TOKENS = 0.15  # the batches' unigram loss differs from that of the text by so many nats
OTHER_TOKENS_ERRORS = 5.0  # and by so many standard errors
RUN_PARTS = 6  # of a run, whose texts are compared with each other
PARTS_ERRORS = 8.0  # the highest and lowest of them differ by so many standard errors
WITHOUT_LOSS = 0.5  # share of targets without loss
ONE_TOKEN = 0.45  # share of a sequence that one token fills without a break, on average
STILL = 1e-7  # a step moves weights by this share of their size, or not at all
STANDING = 0.2  # share of the run without learning rate or moving weights
FIRST_MOVES = 10  # steps after which every parameter has moved
MOVES = 1e-3  # steps of this share of the weights' size are not too small to learn
LONG_STEPS = 0.03  # and below this share not too large (sound: up to 0.045, too high: from 0.078)
CLIPPED = 30.0  # half of all gradients are longer than the clip by this factor
CLIPPED_STEPS = 0.9  # and this share of the steps is clipped
ROWS_OF_ZEROS = 3  # in the first rows, weights that begin at 0 move by more than their size

# What the weights do
AHEAD = 1e-3  # change of earlier logits by later tokens, as a share of the largest logit
DIFFERS = 0.1  # a reloaded checkpoint may have another validation loss by so many nats
TRAINING_DIFFERS = 0.3  # or another training loss
ERRORS = 4.0  # or by so many standard deviations of what was measured
FAR_BELOW = 0.1  # a validation loss below this share of the bigram loss (or of 1 nat)

# Early warning, while a run goes on
ROWS_ABOVE = 2  # this many rows in a row above the start, before anything was learned
ROWS_ABOVE_AFTER = 5  # this many, after the loss has been HUMP below the start
ROWS_LOST = 20  # a jump has lasted for this many rows
ROWS_STUCK = 40  # the loss has not moved for this many rows
UNMOVED_YET = 0.02  # a loss has not moved if it fell by less than this share of the start

# Phases of a healthy curve
DIP = 0.02  # nats by which a dip falls more than as many points before it
END_OF_DECAY = 0.3  # the last phase begins when the rate stays below this share of its peak
