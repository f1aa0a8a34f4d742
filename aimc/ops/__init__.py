"""The attention operator of the analog arrays and the effects that it is made of, one effect per file."""
