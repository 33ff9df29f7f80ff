"use strict";
/* Layers of the cases on and off, their strength, and the place in a volume. Volumes are drawn by NiiVue. */
(function () {
  const root = document.getElementById("viewer");
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const tools = root.querySelector("form");
  const now = root.querySelector(".now");
  const chosen = () => Number(tools.elements.case.value);
  const strength = () => Number(tools.elements.strength.value) / 100;
  const on = (name) => {
    const box = tools.querySelector(`input[name="layer"][value="${name}"]`);
    return Boolean(box && box.checked);
  };
  /* The outline stands out from what is filled; the image is always whole. */
  const opacity = (name) => {
    if (!on(name)) return 0;
    return { image: 1, truth: Math.min(1, 0.3 + strength()), prediction: strength(), uncertainty: strength() }[name];
  };
  const tell = () => {
    const one = data.cases[chosen()];
    now.textContent = `${one.role}: ${one.id}${one.said ? "; " + one.said : ""}`;
  };
  tools.addEventListener("submit", (event) => event.preventDefault());

  function pictures() {
    const stacks = root.querySelectorAll(".stack");
    const draw = () => {
      stacks.forEach((stack, index) => {
        stack.hidden = index !== chosen();
        stack.style.width = `${tools.elements.zoom.value}%`;
        stack.querySelectorAll("img").forEach((layer) => {
          layer.hidden = !on(layer.dataset.layer);
          layer.style.opacity = opacity(layer.dataset.layer);
        });
      });
      tell();
    };
    tools.addEventListener("input", draw);
    draw();
  }

  async function volumes() {
    const canvas = document.getElementById("volume");
    const probe = document.createElement("canvas").getContext("webgl2");
    if (!probe) return;
    const lost = probe.getExtension("WEBGL_lose_context");
    if (lost) lost.loseContext();
    root.hidden = false;
    document.getElementById("no-viewer").hidden = true;
    const viewer = new niivue.Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.6, 0.7, 0.8, 0.6],
      crosshairWidth: 0.3,
      crosshairWidthUnit: "percent",
      dragAndDropEnabled: false,
      isColorbar: false,
      loadingText: "",
      logLevel: "error",
      multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
    });
    await viewer.attachToCanvas(canvas);
    viewer.setInterpolation(true);
    viewer.setSliceType(viewer.sliceTypeMultiplanar);
    const sliders = [...tools.querySelectorAll('input[name="slice"]')];
    let names = [];
    const strengths = () => names.forEach((name, index) => viewer.setOpacity(index, opacity(name)));
    const place = () => {
      viewer.scene.crosshairPos = sliders.map((slider) => Number(slider.value) / 1000);
      viewer.drawScene();
    };
    viewer.onLocationChange = (where) => {
      sliders.forEach((slider, axis) => (slider.value = Math.round(1000 * where.frac[axis])));
    };
    const colours = () => {
      const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
      data.palette.forEach(([red, green, blue], index) => {
        table.R.push(red);
        table.G.push(green);
        table.B.push(blue);
        table.A.push(255);
        table.I.push(index + 1);
        table.labels.push("");
      });
      return table;
    };
    async function load() {
      const index = chosen();
      while (viewer.volumes.length) viewer.removeVolume(viewer.volumes[viewer.volumes.length - 1]);
      const layers = data.cases[index].layers;
      names = Object.keys(layers);
      for (const name of names) {
        const unsure = name === "uncertainty";
        const volume = await niivue.NVImage.loadFromBase64({
          base64: layers[name],
          name: `${name}.nii.gz`,
          colormap: unsure ? "magma" : "gray",
          opacity: 1,
          ...(unsure ? { cal_min: 10, cal_max: 255 } : { cal_min: 0, cal_max: 255 }),
        });
        if (name === "truth" || name === "prediction") volume.setColormapLabel(colours());
        viewer.addVolume(volume);
      }
      strengths();
      data.cases[index].at.forEach((share, axis) => (sliders[axis].value = Math.round(1000 * share)));
      place();
      tell();
      root.dataset.shown = index;
    }
    tools.addEventListener("input", async (event) => {
      if (event.target.name === "case") await load();
      else if (event.target.name === "slice") place();
      else strengths();
    });
    await load();
  }

  const show = root.dataset.kind === "volume" ? volumes : pictures;
  Promise.resolve(show()).catch((error) => {
    root.hidden = true;
    document.getElementById("no-viewer").hidden = false;
    console.error(error);
  });
})();
