"""Thin sub-networks of full depth, cut out of one network or streamed (Lee and Shin 2018)."""
