"""Convolutions of images of few channels, with the pooling behind them."""
