"""PSNR, SSIM and LPIPS, and the protocol they are measured under."""
