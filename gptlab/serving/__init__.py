"""A server that other programs speak to as they do to OpenAI's."""
