"""The signals of a token, in the order in which they are kept."""

N_LOGPROBS = 20


LOGPROBS = tuple(f"logprob_{i}" for i in range(N_LOGPROBS))


SIGNALS = ("entropy", "top1_prob", "top5_prob", *LOGPROBS, "h_alts", "avg_logp", "rank_of_chosen")
