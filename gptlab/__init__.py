"""gptlab trains small GPTs. The walk of one piece of data, from raw text to a sampled line:

1. corpora     where text comes from: a file, Tiny Shakespeare, Python's own documentation
2. tokenizers  text <-> ids, as plain dicts
3. dataset     ids on disk once; training batch i is a pure function of (seed, i)
4. models      idx (B, T) -> logits (B, T, V), always
5. module      the LightningModule: one cross entropy in nats per token, the optimizer, what to save
6. fit         one run: Lightning's Trainer over `conf/`, callbacks and loggers
7. checkpoint  a file of plain dicts -> (model, tokenizer, info), without Lightning
8. sampling    a prompt goes on, one token at a time
"""

__version__ = "0.1.0"
