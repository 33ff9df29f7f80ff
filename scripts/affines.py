"""What an affine must be to say where voxels lie, whatever the file that it comes from."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from scripts.errors import Fault

#: Edges of a voxel in mm that are taken for true: from a hundredth of an atom to ten metres.
SMALLEST, LARGEST = 1e-9, 1e4

#: How small the volume of a voxel may be for the product of its edges: 0 has axes that lie in a plane.
FLATTEST = 1e-4

#: How far from 0 mm an image may begin, in edges of its voxels. Further out the edges are lost in the digits
#: of the places: all voxels lie on one spot.
FARTHEST = 1e9


def require_sound(affine: np.ndarray, axes: int = 3) -> None:
    """Refuse an affine that does not tell voxels apart, or only by mistake.

    Args:
        affine: from voxels to mm, (4, 4).
        axes: how many of its axes count.

    Raises:
        Fault: without a file.
    """
    finite = affine.shape == (4, 4) and np.isfinite(affine).all()
    edges = np.linalg.norm(affine[:3, :3], axis=0) if finite else np.zeros(3)
    if not edges.min() > 0 or abs(np.linalg.det(affine[:3, :3] / edges)) <= FLATTEST:
        raise Fault(
            "an affine that is not invertible",
            "it must say where each voxel lies in mm",
            "write a correct affine into the header",
        )
    edges = nib.affines.voxel_sizes(affine)[:axes]
    if not SMALLEST <= edges.min() <= edges.max() <= LARGEST:
        raise Fault(
            f"a voxel of {' x '.join(f'{size:.4g}' for size in edges)} mm",
            f"an edge has {SMALLEST:g} to {LARGEST:g} mm",
            "write the true size into the header",
        )
    far = np.abs(affine[:3, 3]).max()
    if far > FARTHEST * edges.min():
        raise Fault(
            f"a first voxel that lies {far:.3g} mm away from the origin",
            f"that is at most {FARTHEST:g} times the edge of a voxel, here {edges.min():.4g} mm",
            "write the true place into the header",
        )
