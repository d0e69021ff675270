"""Every column of the tables, with RELION's label, its unit and its meaning."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """A table column.

    Attributes
    ----------
    name : str
        Name inside this package.
    label : str
        RELION 3.1 STAR label, without the leading underscore.
    dtype : str
        NumPy dtype name, ``"str"`` for text.
    unit, doc : str
    """

    name: str
    label: str
    dtype: str
    unit: str
    doc: str


OPTICS = (
    Column("optics_group", "rlnOpticsGroup", "int64", "", "Optics group number, from 1"),
    Column("optics_group_name", "rlnOpticsGroupName", "str", "", "Optics group name"),
    Column("voltage", "rlnVoltage", "float64", "kV", "Acceleration voltage"),
    Column("spherical_aberration", "rlnSphericalAberration", "float64", "mm", "Spherical aberration"),
    Column("amplitude_contrast", "rlnAmplitudeContrast", "float64", "", "Amplitude contrast fraction"),
    Column("pixel_size", "rlnImagePixelSize", "float64", "A", "Pixel size of the particle images"),
    Column("micrograph_pixel_size", "rlnMicrographPixelSize", "float64", "A", "Pixel size of the micrographs"),
    Column("original_pixel_size", "rlnMicrographOriginalPixelSize", "float64", "A", "Pixel size of the movies"),
    Column("image_size", "rlnImageSize", "int64", "px", "Box of the particle images"),
    Column("image_dimensionality", "rlnImageDimensionality", "int64", "", "2 for images"),
    Column(
        "ctf_premultiplied",
        "rlnCtfDataAreCtfPremultiplied",
        "int64",
        "",
        "1 if images carry their CTF already",
    ),
    Column("beam_tilt_x", "rlnBeamTiltX", "float64", "mrad", "Beam tilt"),
    Column("beam_tilt_y", "rlnBeamTiltY", "float64", "mrad", "Beam tilt"),
    Column("odd_zernike", "rlnOddZernike", "str", "rad", "Antisymmetric aberrations, [a, b, ...]"),
    Column("even_zernike", "rlnEvenZernike", "str", "rad", "Symmetric aberrations, [a, b, ...]"),
    Column("mag_00", "rlnMagMat00", "float64", "", "Anisotropic magnification"),
    Column("mag_01", "rlnMagMat01", "float64", "", "Anisotropic magnification"),
    Column("mag_10", "rlnMagMat10", "float64", "", "Anisotropic magnification"),
    Column("mag_11", "rlnMagMat11", "float64", "", "Anisotropic magnification"),
)

MICROGRAPHS = (
    Column("micrograph_name", "rlnMicrographName", "str", "", "Micrograph file"),
    Column("optics_group", "rlnOpticsGroup", "int64", "", "Optics group number, from 1"),
    Column("defocus_u", "rlnDefocusU", "float64", "A", "Larger defocus, underfocus positive"),
    Column("defocus_v", "rlnDefocusV", "float64", "A", "Smaller defocus, underfocus positive"),
    Column("defocus_angle", "rlnDefocusAngle", "float64", "deg", "Angle of the larger defocus from x"),
    Column("phase_shift", "rlnPhaseShift", "float64", "deg", "Phase plate shift"),
    Column("ctf_figure_of_merit", "rlnCtfFigureOfMerit", "float64", "", "Correlation of the fit"),
    Column("ctf_max_resolution", "rlnCtfMaxResolution", "float64", "A", "Resolution to which the fit holds"),
    Column("ctf_astigmatism", "rlnCtfAstigmatism", "float64", "A", "Defocus U minus V"),
    Column("ctf_power_spectrum", "rlnCtfImage", "str", "", "Power spectrum image"),
)

PARTICLES = (
    Column("image_name", "rlnImageName", "str", "", "section@stack, sections from 1"),
    Column("micrograph_name", "rlnMicrographName", "str", "", "Micrograph file"),
    Column("coordinate_x", "rlnCoordinateX", "float64", "px", "Centre in the micrograph"),
    Column("coordinate_y", "rlnCoordinateY", "float64", "px", "Centre in the micrograph"),
    Column("autopick_figure_of_merit", "rlnAutopickFigureOfMerit", "float64", "", "Picking score"),
    Column("optics_group", "rlnOpticsGroup", "int64", "", "Optics group number, from 1"),
    Column("defocus_u", "rlnDefocusU", "float64", "A", "Larger defocus, underfocus positive"),
    Column("defocus_v", "rlnDefocusV", "float64", "A", "Smaller defocus, underfocus positive"),
    Column("defocus_angle", "rlnDefocusAngle", "float64", "deg", "Angle of the larger defocus from x"),
    Column("phase_shift", "rlnPhaseShift", "float64", "deg", "Phase plate shift"),
    Column("ctf_scale", "rlnCtfScalefactor", "float64", "", "Scale of the CTF"),
    Column("ctf_b_factor", "rlnCtfBfactor", "float64", "A^2", "Envelope of the CTF"),
    Column("rot", "rlnAngleRot", "float64", "deg", "First Euler angle (Z)"),
    Column("tilt", "rlnAngleTilt", "float64", "deg", "Second Euler angle (Y)"),
    Column("psi", "rlnAnglePsi", "float64", "deg", "Third Euler angle (Z)"),
    Column("origin_x", "rlnOriginXAngst", "float64", "A", "Shift to add to the image to centre it"),
    Column("origin_y", "rlnOriginYAngst", "float64", "A", "Shift to add to the image to centre it"),
    Column("class_number", "rlnClassNumber", "int64", "", "Class, from 1"),
    Column("random_subset", "rlnRandomSubset", "int64", "", "Half set, 1 or 2"),
    Column("log_likelihood", "rlnLogLikeliContribution", "float64", "", "Log-likelihood of the image"),
    Column("max_probability", "rlnMaxValueProbDistribution", "float64", "", "Largest pose probability"),
    Column("n_significant_samples", "rlnNrOfSignificantSamples", "int64", "", "Poses that hold the posterior"),
    Column("norm_correction", "rlnNormCorrection", "float64", "", "Scale applied to the image"),
    Column("group_name", "rlnGroupName", "str", "", "Noise group"),
)
