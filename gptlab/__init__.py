"""gptlab trains small GPTs. The walk of one piece of data, from raw text to a sampled line:

1. data/corpora         which text: files, Tiny Shakespeare, Python's own documentation, the Hugging Face hub
2. data/prepare         split, tokenised (data/tokenizers: text <-> ids, as plain dicts) and written as ids, once
3. data/batches         training batch i is a pure function of (seed, i); a held-out split comes whole, in order
4. models               idx (B, T) -> logits (B, T, V), always
5. training/module      the LightningModule: one cross entropy in nats per token, the optimizer, what to save
6. training/fit         one run: Lightning's Trainer over `conf/`, callbacks and loggers
7. formats/checkpoint   a file of plain dicts -> (model, tokenizer, info), without Lightning
8. generation           prompts are continued, a token at a time; formats/open_model opens the models of others, too
9. sweeps               many runs, each a process of its own; reports makes one table of them
"""

__version__ = "0.1.0"
