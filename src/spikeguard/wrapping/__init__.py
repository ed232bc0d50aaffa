"""Networks of other frameworks as models: the reset of their state, time, output, normalization; and what to
write where a model needs that."""
