"""Each `Sampling` setting, applied to the logits of one sequence in plain NumPy."""

import math

import numpy as np

NEVER = -np.inf


def process(sampling, logits, tokens, *, stops, emitted, max_new_tokens):
    """Logits [vocab] that the next token is chosen from; the last `emitted` of `tokens` are new."""
    x = np.array(logits, np.float64)

    def setting(name, default):
        value = getattr(sampling, name)
        return default if value is None else value

    def ends_with(run):
        return len(run) <= len(tokens) and tokens[len(tokens) - len(run) :] == list(run)

    for run, bias in setting("sequence_bias", ()):
        if ends_with(run[:-1]):
            x[run[-1]] += bias
    penalty = setting("repetition_penalty", 1.0)
    for token in {token for token in tokens if token < len(x)}:
        x[token] = x[token] * penalty if x[token] < 0 else x[token] / penalty
    size = setting("no_repeat_ngram_size", 0)
    if size:
        seen = [tokens[i : i + size] for i in range(len(tokens) - size + 1)]
        suffix = tokens[len(tokens) - size + 1 :]
        for token in range(len(x)):
            if [*suffix, token] in seen and len(tokens) >= size:
                x[token] = NEVER
    for run in setting("bad_words_ids", ()):
        if run not in [(stop,) for stop in stops] and ends_with(run[:-1]):
            x[run[-1]] = NEVER
    shortest = setting("min_length", 0) if sampling.min_new_tokens is None else 0
    if len(tokens) < shortest or emitted < setting("min_new_tokens", 0):
        x[list(stops)] = NEVER
    forced = ()
    if len(tokens) == 1:
        forced = setting("forced_bos_token_id", ())
    if emitted == max_new_tokens - 1:
        forced = setting("forced_eos_token_id", ()) or forced
    if forced:
        x[:] = NEVER
        x[list(forced)] = 0.0
    suppressed = setting("suppress_tokens", ())
    if emitted == 0:
        suppressed += setting("begin_suppress_tokens", ())
    x[[token for token in suppressed if token < len(x)]] = NEVER
    return x if sampling.greedy else narrow(x / sampling.temperature, setting)


def narrow(x, setting):
    """The tokens that are left to draw from."""

    def by_probability():
        return sorted(range(len(x)), key=lambda token: x[token])[::-1]

    def keep(tokens):
        out = np.full_like(x, NEVER)
        out[tokens] = x[tokens]
        return out

    if setting("top_k", 0):
        x = keep(by_probability()[: setting("top_k", 0)])
    if setting("top_p", 1.0) < 1:
        p, mass, nucleus = probabilities(x), 0.0, []
        for token in by_probability():
            nucleus.append(token)
            mass += p[token]
            if mass >= setting("top_p", 1.0):
                break
        x = keep(nucleus)
    p = probabilities(x)
    x = keep([t for t in range(len(x)) if p[t] >= setting("min_p", 0.0) * max(p)])
    if setting("typical_p", 1.0) < 1:
        p, entropy = probabilities(x), entropy_of(x)
        surprise = [abs(-math.log(q) - entropy) if q else math.inf for q in p]
        mass, typical = 0.0, []
        for token in sorted(range(len(x)), key=lambda token: surprise[token]):
            typical.append(token)
            mass += p[token]
            if mass >= setting("typical_p", 1.0):
                break
        x = keep(typical)
    for name in ("epsilon_cutoff", "eta_cutoff"):
        least = setting(name, 0.0)
        if name == "eta_cutoff":
            least = min(least, math.sqrt(least) * math.exp(-entropy_of(x)))
        p = probabilities(x)
        x = keep([t for t in range(len(x)) if p[t] >= least or p[t] == max(p)])
    return x


def probabilities(x):
    p = np.exp(x - max(x))
    return p / p.sum()


def entropy_of(x):
    return -sum(q * math.log(q) for q in probabilities(x) if q)
