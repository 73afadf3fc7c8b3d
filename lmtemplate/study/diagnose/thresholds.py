"""What counts as much, as little and as early in a verdict: every threshold, with its reason.

Fitted on tiny runs of known faults (benchmarks/verdicts.py), and reported on others. Losses are in
nats per token.
"""

ROWS = 20  # with fewer, trend and noise cannot be told apart, and nobody is accused by the curve

# The start
OFF_START = 0.5  # of the first loss above ln V: GPT-2's own initialisation is 0.1 above it
HUMP = 0.3  # above the start, where no healthy row is, or early above the best so far
ABSURD = {"Muon": 1.0, "Adam": 0.5}  # rates that no warmup makes good ones
FIRST = 0.1  # of a run, whose rows may not rise above the best so far
EARLY = 0.25  # of a run: later, warmup would not have prevented it
NO_WARMUP = 0.5  # of the peak rate at the first row: there was next to no warmup

# Jumps and rises
ROWS_BEFORE = 5  # whose median a jump starts from
JUMP, JUMP_NOISE = 0.4, 6.0  # of a row over those, in nats and in standard deviations of rows
BACK = 0.15  # above the level before a jump, and it is over
ROWS_AFTER = 3  # at least, or nobody knows whether it comes back
RISE = 0.2  # of the end above the best level, between medians
PEAK = 0.04  # of one validation above its neighbours: healthy runs have none at all, see `swings`
PEAKS = 0.08  # of all those in sum, as a share of the fall of the loss

# Levels
UNMOVED, UNMOVED_UNKNOWN = 0.06, 0.02  # of the start: least fall; the same if V is not known
NEAR_UNIGRAM = 0.05  # of the loss of token frequencies: where shuffled labels end, on validation
UP_TO_UNIGRAM = 0.15  # below it, little more than frequencies was learned
FAST = 0.6  # of the way down to token frequencies: a crawling run has not come so far
FLAT = 0.1  # of the fall in the last half: the curve has stopped
STEPS_FLAT = 200  # GPT-2's initialisation rests at token frequencies for 100 steps and more
ABOVE_BIGRAM = 0.1  # token pairs are what the smallest net that works learns first
INFORMATIVE = 0.3  # of bigrams below unigrams, or the order of tokens tells nothing
ADAM_RATE = 0.05  # peak that Adam bears where it is followed by nothing but a standstill
STILL, FALLING = 0.01, 0.2  # of the whole fall, in the last third: a plateau; still too fast

# Training beside validation
TURN = 0.05  # of the last two validations above the best; those of quickstart never turn
VALIDATIONS = 4  # at least, to speak of a turn
GAP = 0.5  # the documents' own threshold of overfitting

# The data
SHARED = 0.1  # of validation windows in the training text; clean corpora have 0.0001
REPEATED = 0.2  # of training windows; clean corpora have 0.0003
COPIED_TOKENS, COPIED_BYTES = 32, 120  # of a span that chance does not repeat
BY_HEART, FOREIGN = 0.1, 1.0  # training loss of text known by heart; validation above it
TOKENS_PER_PARAMETER = 20.0  # Hoffmann et al. 2022
FEW_TOKENS, MANY_TOKENS = 10.0, 100.0  # per parameter: half of that, and five times

# While a run goes on (live.py)
ROWS_ABOVE, ROWS_ABOVE_AFTER = 2, 5  # in a row above the start; the same once it has learned
ROWS_LOST = 20  # since a jump, without coming back
ROWS_STUCK = 40  # that have not moved
UNMOVED_YET = 0.02  # of the start

# Phases of a healthy curve
END_OF_DECAY = 0.3  # of the peak rate: the last third of a cosine
