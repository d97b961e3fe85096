"""What a network looks at: first filters, feature maps, Grad-CAM, and single convolutions of an image.

python -c "from fastcnn import explain; explain.grad_cam('best.pt', 'photo.jpg').picture().save('cam.png')"
"""

from fastcnn.explain.convolution import Convolution, convolve, read_kernel
from fastcnn.explain.filters import Filters, first_filters
from fastcnn.explain.maps import Cam, FeatureMaps, feature_maps, grad_cam
from fastcnn.inference.trained import Trained, open_trained

__all__ = [
    "Cam",
    "Convolution",
    "FeatureMaps",
    "Filters",
    "Trained",
    "convolve",
    "feature_maps",
    "first_filters",
    "grad_cam",
    "open_trained",
    "read_kernel",
]
