"""What is fetched from outside, and only when asked."""

from dataclasses import dataclass

from magvit_scale.config.reading import Refusal


@dataclass(frozen=True, kw_only=True)
class FetchWeightsConfig:
    """magvit fetch-weights: the frozen networks' weights -> the folder of MAGVIT_WEIGHTS, checked; alone it lists them.
    Needs no GPU; the only program that downloads weights.
    """

    names: tuple[str, ...] = ()
    """Weights to fetch, as in the list."""
    list: bool = False
    """Shows what there is and what is here, and fetches nothing; also --list, and so it is without names."""
    mirror: str | None = None
    """http(s) folder that holds the files under their names, in place of the published addresses."""
    file: str | None = None
    """A local copy that is imported by the same checks, without a network; takes exactly one name."""

    def __post_init__(self) -> None:
        """Refuses two origins, and one that is none."""
        if self.mirror is not None and self.file is not None:
            raise Refusal(f"mirror={self.mirror} file={self.file}: expected one of them; leave one out")
        if self.mirror is not None and not self.mirror.startswith(("http://", "https://")):
            raise Refusal(f"mirror={self.mirror}: expected http://... or https://...; a local copy is file=PATH")
        if self.file is not None and len(self.names) != 1:
            raise Refusal(f"file={self.file}: {len(self.names)} names, expected one; say names=[NAME] for what it is")
