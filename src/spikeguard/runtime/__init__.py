"""What running needs: stopping, progress, float32, memory, the machine."""
