"""What H3 and StripedHyena share: long convolutions and the states they leave, attention, and the frame of a decoder.

Their packages beside this one call it. It imports transformers and PyTorch, nothing of the house.
"""
