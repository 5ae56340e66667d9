"""Training the two LoRAs of a pair on whatever MODEL is connected. Loaded when a node trains, not before."""
