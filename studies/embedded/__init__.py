"""Every defense under the same conditions on the embedded images."""
