"""One module a command of `minivapo`."""
