"""From whole members to LoRAs."""
