"""Which operands a call of an estimator has, as bits, and with sizes and scalars decides how it is launched.

operands = VALUES | TERMINATED | ..., of those that are there.
"""

VALUES, TERMINATED, TRUNCATED, MASK = 1, 2, 4, 8
PACKED = 16  # cu_seqlens
FULL = 32  # next values of every row, not of each sequence's last one
RATIOS, SECOND = 64, 128  # log ratios, a second output
