"""ANN and EANN: an exit after every unit, and networks of growing depth run one after the other (Hu et al. 2017)."""
